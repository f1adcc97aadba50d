package main

import (
	"bytes"
	"strconv"
)

type stage int

const (
	inHead stage = iota
	inLength
	inChunkSize
	inChunk
	afterChunk
	atEnd
	broken
)

var (
	chunked = []byte("chunked")
	coding  = []byte("transfer-encoding")
)

// answer is what the load has received of one: its status, and the body without its framing.
type answer struct {
	stage  stage
	status int
	line   []byte // of the head, or the size of a chunk, as far as it came
	left   int    // bytes of the body, or of the chunk
	body   []byte // what was not looked at yet
}

func (a *answer) reset() {
	*a = answer{line: a.line[:0], body: a.body[:0]}
}

// feed takes what one read gave. An answer of another form than a proxy of this bench gives is `broken`.
func (a *answer) feed(data []byte) {
	for len(data) > 0 {
		switch a.stage {
		case inHead:
			data = a.feedHead(data)
		case inLength, inChunk:
			count := atMost(a.left, len(data))
			a.body = append(a.body, data[:count]...)
			data = data[count:]
			a.left -= count
			if a.left == 0 && a.stage == inLength {
				a.stage = atEnd
			} else if a.left == 0 {
				a.stage = afterChunk
			}
		case inChunkSize, afterChunk:
			data = a.feedLine(data)
		default:
			a.stage = broken // nobody asked for more
			return
		}
	}
}

func (a *answer) feedHead(data []byte) []byte {
	before := len(a.line)
	a.line = append(a.line, data...)
	end := bytes.Index(a.line, headEnd)
	if end < 0 {
		return nil
	}
	rest := data[end+len(headEnd)-before:]
	head := a.line[:end]
	if len(head) > 12 {
		a.status = leadingNumber(head[9:12])
	}
	a.stage, a.left = inLength, lengthOfBody(head)
	if isChunked(head) {
		a.stage = inChunkSize
	} else if a.left == 0 {
		a.stage = atEnd
	}
	a.line = a.line[:0]
	return rest
}

func isChunked(head []byte) bool {
	for len(head) > 0 {
		line, rest, _ := bytes.Cut(head, lineFeed)
		head = rest
		if len(line) > len(coding) && bytes.EqualFold(line[:len(coding)], coding) {
			return bytes.HasSuffix(line, chunked)
		}
	}
	return false
}

// feedLine takes the line with the size of a chunk, or the empty one after a chunk or after the last one.
func (a *answer) feedLine(data []byte) []byte {
	end := bytes.IndexByte(data, '\n')
	if end < 0 {
		a.line = append(a.line, data...)
		return nil
	}
	a.line = append(a.line, data[:end]...)
	line := bytes.TrimSuffix(a.line, lineFeed[:1])
	switch {
	case a.stage == afterChunk && a.left == 0 && len(line) == 0:
		a.stage = inChunkSize
	case a.stage == inChunkSize && a.left < 0 && len(line) == 0:
		a.stage = atEnd
	default:
		size, err := strconv.ParseUint(string(line), 16, 31)
		a.left = int(size)
		if err != nil {
			a.stage = broken
		} else if size > 0 {
			a.stage = inChunk
		} else {
			a.left = -1 // the empty line after the last chunk is still to come
		}
	}
	a.line = a.line[:0]
	return data[end+1:]
}
