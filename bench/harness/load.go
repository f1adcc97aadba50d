package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"sort"
	"syscall"
)

// plan is what a run of the load does. All times are in nanoseconds.
type plan struct {
	target, header string
	lanes          int // connections, each with one request at a time
	events         int // deltas of a stream; 0: JSON
	gapMicros      int
	open           int64 // the lanes start evenly within this time
	warm, measured int64 // what is measured begins after the one and lasts for the other
	isOnce         bool  // a lane makes one request; else one after the other until the end
	wished         int   // status that the provider is asked for; 0: as usual
	expected       int   // status that is right; an answer with another one than 200 has nothing to be looked at
	leaves         bool  // a lane goes away at the first event of a stream, and comes back on a new connection
}

// figures is what a run found, as one line of JSON. Counts without "per second" are of the whole run.
type figures struct {
	Requests        int     `json:"requests"`
	Failures        int     `json:"failures"`
	Events          int     `json:"events"`
	PerSecond       float64 `json:"per_second"`
	EventsPerSecond float64 `json:"events_per_second"`
	Whole           spread  `json:"whole"` // request sent -> answer whole
	First           spread  `json:"first"` // request sent -> first event
	Late            spread  `json:"late"`  // event sent by the provider -> received
}

// spread is the percentiles of some durations, in milliseconds.
type spread struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

type load struct {
	plan
	poller                *poller
	lanesByFd             []*lane
	starts                timers[*lane]
	running               int
	from, until           int64
	figures               figures
	whole, first, late    []int64
	finished, eventsInRun int // within the measured time
	request               []byte
	buffer                [256 << 10]byte
}

// lane is one connection and its request.
type lane struct {
	fd       int
	sent     int64
	isFirst  bool // no event has come yet
	deltas   int
	hasEnded bool // the terminal event, or the usage of a JSON answer, has come
	answer   answer
}

func runLoad(mode string, arguments []string) {
	flags := flag.NewFlagSet(mode, flag.ExitOnError)
	target := flags.String("target", "", "host:port")
	header := flags.String("header", "x-api-key: none", "the header that carries the key")
	lanes := flags.Int("lanes", 64, "connections")
	events := flags.Int("events", 25, "deltas of a stream")
	gap := flags.Int("gap-us", 20_000, "microseconds between them")
	open := flags.Float64("open", 0, "seconds within which the lanes start")
	warm := flags.Float64("warm", 1, "seconds before measuring")
	seconds := flags.Float64("seconds", 3, "seconds of measuring")
	wished := flags.Int("wish", 0, "status that the provider is to answer with")
	expected := flags.Int("expect", 200, "status that the answers have to have")
	check(flags.Parse(arguments), "flags")
	if mode == "json" {
		*events = 0
	}
	l := &load{
		plan: plan{
			target: *target, header: *header, lanes: *lanes, events: *events, gapMicros: *gap, open: int64(*open * 1e9),
			warm: int64(*warm * 1e9), measured: int64(*seconds * 1e9), isOnce: mode == "once",
			wished: *wished, expected: *expected, leaves: mode == "leave",
		},
		poller: newPoller(), lanesByFd: make([]*lane, 64<<10),
		whole: make([]int64, 0, 1<<20), first: make([]int64, 0, 1<<20), late: make([]int64, 0, 1<<22),
	}
	l.run()
	check(json.NewEncoder(os.Stdout).Encode(l.report()), "output")
}

func (l *load) run() {
	l.request = requestBytes(l.target, l.header, l.events, l.gapMicros, l.wished)
	begin := now()
	l.from, l.until = begin+l.warm, begin+l.warm+l.measured
	for number := 0; number < l.lanes; number++ {
		l.starts.add(begin+l.open*int64(number)/int64(l.lanes), &lane{})
	}
	address := resolve(l.target)
	l.running = l.lanes
	for l.running > 0 {
		for _, ready := range l.poller.wait(l.starts.next()) {
			l.receive(l.lanesByFd[ready.Fd])
		}
		for l.starts.next() <= now() {
			starting := l.starts.take().thing
			starting.fd = connect(address)
			l.lanesByFd[starting.fd] = starting
			l.poller.add(starting.fd)
			l.send(starting)
		}
	}
}

// send begins the next request of a lane.
func (l *load) send(on *lane) {
	on.answer.reset()
	on.isFirst, on.hasEnded, on.deltas = true, false, 0
	on.sent = now()
	l.figures.Requests++
	if write(on.fd, l.request) != len(l.request) {
		l.fail(on)
	}
}

func (l *load) receive(on *lane) {
	count := read(on.fd, l.buffer[:])
	if count < 0 {
		return
	}
	at := now()
	if count == 0 {
		l.fail(on)
		return
	}
	on.answer.feed(l.buffer[:count])
	if len(on.answer.body) > 0 && l.expected == 200 {
		l.look(on, at)
	}
	switch {
	case on.answer.stage == atEnd:
		l.finish(on, at)
	case on.answer.stage == broken:
		l.fail(on)
	case l.leaves && on.deltas > 0:
		l.leave(on, at)
	}
}

// look reads what has come of the body.
func (l *load) look(on *lane, at int64) {
	body := on.answer.body
	if l.events == 0 {
		on.hasEnded = bytes.Contains(body, jsonUsage)
		return
	}
	if on.isFirst && bytes.Contains(body, startOfEvent) {
		on.isFirst = false
		if l.isMeasured(on.sent) {
			l.first = append(l.first, at-on.sent)
		}
	}
	for {
		end := bytes.Index(body, eventEnd)
		if end < 0 {
			break
		}
		l.lookAtEvent(on, body[:end], at)
		body = body[end+len(eventEnd):]
	}
	on.answer.body = append(on.answer.body[:0], body...)
}

func (l *load) lookAtEvent(on *lane, event []byte, at int64) {
	place := bytes.IndexByte(event, stampMark)
	if place < 0 {
		on.hasEnded = on.hasEnded || bytes.HasPrefix(event, terminal)
		return
	}
	on.deltas++
	l.figures.Events++
	if l.isMeasured(at) {
		l.eventsInRun++
		l.late = append(l.late, at-int64(leadingNumber(event[place+1:])))
	}
}

func (l *load) finish(on *lane, at int64) {
	if on.answer.status != l.expected || l.expected == 200 && (!on.hasEnded || on.deltas != l.events) {
		l.fail(on)
		return
	}
	if l.isMeasured(at) {
		l.finished++
		l.whole = append(l.whole, at-on.sent)
	}
	if l.isOnce || at >= l.until {
		l.close(on)
	} else {
		l.send(on)
	}
}

// leave closes a connection whose answer is under way.
func (l *load) leave(on *lane, at int64) {
	l.close(on)
	if at < l.until {
		l.running++
		l.starts.add(at, &lane{})
	}
}

// fail counts a wrong answer; its lane stops, so that a broken proxy is not measured on.
func (l *load) fail(on *lane) {
	l.figures.Failures++
	if l.figures.Failures == 1 {
		os.Stderr.WriteString("first failure: ")
		os.Stderr.Write(append(on.answer.body[:atMost(500, len(on.answer.body))], '\n'))
	}
	l.close(on)
}

func (l *load) close(on *lane) {
	syscall.Close(on.fd)
	l.running--
}

func (l *load) isMeasured(at int64) bool {
	return at >= l.from && at < l.until
}

func (l *load) report() figures {
	seconds := float64(l.measured) / 1e9
	l.figures.PerSecond = float64(l.finished) / seconds
	l.figures.EventsPerSecond = float64(l.eventsInRun) / seconds
	l.figures.Whole, l.figures.First, l.figures.Late = spreadOf(l.whole), spreadOf(l.first), spreadOf(l.late)
	return l.figures
}

func spreadOf(durations []int64) spread {
	if len(durations) == 0 {
		return spread{}
	}
	sort.Slice(durations, func(a, b int) bool { return durations[a] < durations[b] })
	at := func(share float64) float64 { return float64(durations[int(share*float64(len(durations)-1))]) / 1e6 }
	return spread{P50: at(0.50), P99: at(0.99)}
}
