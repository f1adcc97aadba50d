package main

import (
	"net"
	"syscall"
	"time"
	"unsafe"
)

const (
	epollPwait2 = 441 // of all architectures; waits in nanoseconds, where epoll_wait rounds to milliseconds
	never       = int64(1) << 62
)

var (
	startedAt   = time.Now()
	startedMono = monotonic()
)

func monotonic() int64 {
	var at syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&at)), 0)
	if errno != 0 {
		check(errno, "clock")
	}
	return at.Nano()
}

// now is CLOCK_MONOTONIC in nanoseconds, the same in both processes, without a system call.
func now() int64 {
	return startedMono + int64(time.Since(startedAt))
}

// poller tells which sockets may be read or written.
type poller struct {
	fd     int
	events [512]syscall.EpollEvent
}

func newPoller() *poller {
	fd, err := syscall.EpollCreate1(0)
	check(err, "epoll")
	return &poller{fd: fd}
}

func (p *poller) add(fd int) {
	check(p.control(syscall.EPOLL_CTL_ADD, fd, syscall.EPOLLIN), "epoll add")
}

// watchWriting asks for a turn when a socket takes more, or no longer.
func (p *poller) watchWriting(fd int, wanted bool) {
	events := uint32(syscall.EPOLLIN)
	if wanted {
		events |= syscall.EPOLLOUT
	}
	check(p.control(syscall.EPOLL_CTL_MOD, fd, events), "epoll modify")
}

func (p *poller) control(operation, fd int, events uint32) error {
	return syscall.EpollCtl(p.fd, operation, fd, &syscall.EpollEvent{Events: events, Fd: int32(fd)})
}

// wait returns what is ready, after `until` (nanoseconds of now()) at the latest.
func (p *poller) wait(until int64) []syscall.EpollEvent {
	var timeout *syscall.Timespec
	if until != never {
		left := until - now()
		if left < 0 {
			left = 0
		}
		at := syscall.NsecToTimespec(left)
		timeout = &at
	}
	count, _, errno := syscall.Syscall6(epollPwait2, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])),
		uintptr(len(p.events)), uintptr(unsafe.Pointer(timeout)), 0, 0)
	if errno == syscall.EINTR {
		return nil
	}
	if errno != 0 {
		check(errno, "epoll wait")
	}
	return p.events[:count]
}

// read returns how many bytes came; 0 at the end or after an error, -1 if there is nothing now.
func read(fd int, into []byte) int {
	count, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&into[0])), uintptr(len(into)))
	if errno == syscall.EAGAIN || errno == syscall.EINTR {
		return -1
	}
	if errno != 0 {
		return 0
	}
	return int(count)
}

// write returns how many bytes the system took; -1 if the connection is gone.
func write(fd int, data []byte) int {
	count, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)))
	if errno == syscall.EAGAIN || errno == syscall.EINTR {
		return 0
	}
	if errno != 0 {
		return -1
	}
	return int(count)
}

func resolve(address string) *syscall.SockaddrInet4 {
	resolved, err := net.ResolveTCPAddr("tcp4", address)
	check(err, "address")
	socketAddress := &syscall.SockaddrInet4{Port: resolved.Port}
	copy(socketAddress.Addr[:], resolved.IP.To4())
	return socketAddress
}

func newSocket() int {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	check(err, "socket")
	return fd
}

func withoutDelay(fd int) {
	check(syscall.SetNonblock(fd, true), "non-blocking")
	check(syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1), "no delay")
}

func listen(address string) int {
	fd := newSocket()
	check(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1), "reuse")
	check(syscall.Bind(fd, resolve(address)), "bind")
	check(syscall.Listen(fd, 4096), "listen")
	check(syscall.SetNonblock(fd, true), "non-blocking")
	return fd
}

func connect(address *syscall.SockaddrInet4) int {
	fd := newSocket()
	check(syscall.Connect(fd, address), "connect")
	withoutDelay(fd)
	return fd
}
