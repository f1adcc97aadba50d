package main

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

const (
	eventsInAWrite = 16
	// Without a pause, so many events are sent before the next connection has its turn.
	eventsInATurn = 64
)

var (
	lineFeed      = []byte("\r\n")
	headEnd       = []byte("\r\n\r\n")
	contentLength = []byte("content-length")
)

// provider answers POST with a message or a stream of one, GET with a list of models.
type provider struct {
	poller      *poller
	connections []*upstreamSide
	due         timers[*upstreamSide]
	eager       []*upstreamSide
	buffer      [64 << 10]byte
	scratch     []byte
}

// upstreamSide is one connection of a proxy to the provider.
type upstreamSide struct {
	fd        int
	received  []byte
	unsent    []byte
	left      int // deltas to send
	deltas    int
	gap       int64 // nanoseconds
	isWaiting bool  // for the socket to take more
	isGone    bool
}

func runProvider(address string) {
	p := &provider{poller: newPoller(), connections: make([]*upstreamSide, 64<<10)}
	listener := listen(address)
	p.poller.add(listener)
	fmt.Fprintln(os.Stdout, "ready")
	for {
		until := p.due.next()
		if len(p.eager) > 0 {
			until = 0
		}
		for _, ready := range p.poller.wait(until) {
			if int(ready.Fd) == listener {
				p.accept(listener)
			} else if connection := p.connections[ready.Fd]; connection != nil {
				p.serve(connection, ready.Events)
			}
		}
		p.sendDue()
		p.sendEager()
	}
}

func (p *provider) accept(listener int) {
	for {
		fd, _, err := syscall.Accept4(listener, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		withoutDelay(fd)
		p.connections[fd] = &upstreamSide{fd: fd}
		p.poller.add(fd)
	}
}

func (p *provider) serve(c *upstreamSide, events uint32) {
	if events&syscall.EPOLLOUT != 0 {
		p.flush(c)
	}
	if events&(syscall.EPOLLIN|syscall.EPOLLHUP|syscall.EPOLLERR) == 0 {
		return
	}
	count := read(c.fd, p.buffer[:])
	if count < 0 {
		return
	}
	if count == 0 {
		p.close(c)
		return
	}
	if len(c.received) == 0 {
		c.received = append(c.received, p.answerAll(c, p.buffer[:count])...)
		return
	}
	c.received = append(c.received, p.buffer[:count]...)
	c.received = append(c.received[:0], p.answerAll(c, c.received)...)
}

// answerAll answers each whole request of `received` and returns the rest.
func (p *provider) answerAll(c *upstreamSide, received []byte) []byte {
	for !c.isGone {
		end := bytes.Index(received, headEnd)
		if end < 0 {
			return received
		}
		whole := end + len(headEnd) + lengthOfBody(received[:end])
		if len(received) < whole {
			return received
		}
		p.answer(c, received[:end], received[end:whole])
		received = received[whole:]
	}
	return nil
}

func lengthOfBody(head []byte) int {
	for len(head) > 0 {
		line, rest, _ := bytes.Cut(head, lineFeed)
		head = rest
		if len(line) > len(contentLength) && bytes.EqualFold(line[:len(contentLength)], contentLength) {
			return leadingNumber(bytes.TrimLeft(line[len(contentLength):], ": "))
		}
	}
	return 0
}

func (p *provider) answer(c *upstreamSide, head, body []byte) {
	deltas, status := wished(body, eventsWish), wished(body, statusWish)
	switch {
	case bytes.HasPrefix(head, []byte("GET ")):
		p.send(c, modelsAnswer)
	case status > 0:
		p.send(c, errorAnswer(status))
	case deltas == 0:
		p.send(c, jsonAnswer)
	default:
		c.deltas, c.left = deltas, deltas
		c.gap = int64(wished(body, gapWish)) * 1_000
		p.scratch = append(p.scratch[:0], streamHead...)
		p.scratch = appendChunk(p.scratch, []byte(streamStart))
		p.send(c, p.scratch)
		if c.gap == 0 {
			p.eager = append(p.eager, c)
		} else {
			p.due.add(now()+c.gap, c)
		}
	}
}

// sendDue sends the events whose time has come, each in a write of its own.
func (p *provider) sendDue() {
	for p.due.next() <= now() {
		entry := p.due.take()
		c := entry.thing
		if c.isGone {
			continue
		}
		p.scratch = appendDelta(p.scratch[:0], now())
		c.left--
		if c.left == 0 {
			p.scratch = appendEnd(p.scratch, c.deltas)
		} else {
			p.due.add(entry.at+c.gap, c)
		}
		p.send(c, p.scratch)
	}
}

// sendEager sends the streams without a pause, as fast as each connection takes them.
func (p *provider) sendEager() {
	round := p.eager
	p.eager = p.eager[len(p.eager):]
	for _, c := range round {
		for sent := 0; sent < eventsInATurn && !c.isWaiting && !c.isGone && c.left > 0; sent += eventsInAWrite {
			p.sendBatch(c)
		}
		if c.left > 0 && !c.isWaiting && !c.isGone {
			p.eager = append(p.eager, c)
		}
	}
}

func (p *provider) sendBatch(c *upstreamSide) {
	p.scratch = p.scratch[:0]
	for count := atMost(eventsInAWrite, c.left); count > 0; count-- {
		p.scratch = appendDelta(p.scratch, now())
		c.left--
	}
	if c.left == 0 {
		p.scratch = appendEnd(p.scratch, c.deltas)
	}
	p.send(c, p.scratch)
}

func (p *provider) send(c *upstreamSide, data []byte) {
	if len(c.unsent) > 0 {
		c.unsent = append(c.unsent, data...)
		return
	}
	taken := write(c.fd, data)
	if taken < 0 {
		p.close(c)
	} else if taken < len(data) {
		c.unsent = append(c.unsent, data[taken:]...)
		c.isWaiting = true
		p.poller.watchWriting(c.fd, true)
	}
}

// flush goes on where a socket took no more.
func (p *provider) flush(c *upstreamSide) {
	if len(c.unsent) == 0 || c.isGone {
		return
	}
	taken := write(c.fd, c.unsent)
	if taken < 0 {
		p.close(c)
		return
	}
	c.unsent = append(c.unsent[:0], c.unsent[taken:]...)
	if len(c.unsent) == 0 {
		c.isWaiting = false
		p.poller.watchWriting(c.fd, false)
		if c.gap == 0 && c.left > 0 {
			p.eager = append(p.eager, c)
		}
	}
}

func (p *provider) close(c *upstreamSide) {
	if !c.isGone {
		c.isGone = true
		p.connections[c.fd] = nil
		syscall.Close(c.fd)
	}
}
