package main

import (
	"bytes"
	"fmt"
	"strconv"
)

// What both sides know of each other. The load writes its wish into the prompt, `events=25 gap_us=20000` or
// `status=400`, because a prompt passes every gateway; the provider writes the time of sending into each text delta,
// `@<nanoseconds> `.
const (
	model           = "claude-haiku-4-5"
	inputTokens     = 12
	cacheReadTokens = 5
	jsonOutput      = 34
	stampMark       = '@'
)

var (
	eventEnd     = []byte("\n\n")
	terminal     = []byte("event: message_stop")
	startOfEvent = []byte("event: message_start")
	eventsWish   = []byte("events=")
	gapWish      = []byte("gap_us=")
	statusWish   = []byte("status=")

	jsonBody = fmt.Appendf(nil, `{"id":"msg_01bench","type":"message","role":"assistant","model":"%s","content":`+
		`[{"type":"text","text":"Four words of text."}],"stop_reason":"end_turn","stop_sequence":null,"usage":`+
		`{"input_tokens":%d,"cache_creation_input_tokens":0,"cache_read_input_tokens":%d,"output_tokens":%d}}`,
		model, inputTokens, cacheReadTokens, jsonOutput)
	jsonUsage  = []byte(`"output_tokens":` + strconv.Itoa(jsonOutput))
	jsonAnswer = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"+
		"request-id: req_01bench\r\n\r\n%s", len(jsonBody), jsonBody)

	errorBody = []byte(`{"type":"error","error":{"type":"invalid_request_error","message":"As wished."}}`)

	modelsBody = fmt.Appendf(nil, `{"data":[{"type":"model","id":"%s","display_name":"Bench",`+
		`"created_at":"2025-10-01T00:00:00Z"}],"has_more":false,"first_id":"%s","last_id":"%s"}`, model, model, model)
	modelsAnswer = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
		len(modelsBody), modelsBody)

	streamHead = []byte("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n" +
		"request-id: req_01bench\r\ntransfer-encoding: chunked\r\n\r\n")
	streamStart = event("message_start", fmt.Sprintf(`{"type":"message_start","message":{"id":"msg_01bench","type":`+
		`"message","role":"assistant","model":"%s","content":[],"stop_reason":null,"stop_sequence":null,"usage":`+
		`{"input_tokens":%d,"cache_creation_input_tokens":0,"cache_read_input_tokens":%d,"output_tokens":1}}}`,
		model, inputTokens, cacheReadTokens)) + event("content_block_start",
		`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)
	deltaStart = []byte("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0," +
		"\"delta\":{\"type\":\"text_delta\",\"text\":\"@")
	deltaEnd = []byte(" some words\"}}\n\n")
)

func event(name, data string) string {
	return "event: " + name + "\ndata: " + data + "\n\n"
}

// appendChunk appends a piece of a body with its framing.
func appendChunk(to, piece []byte) []byte {
	to = strconv.AppendInt(to, int64(len(piece)), 16)
	to = append(to, "\r\n"...)
	to = append(to, piece...)
	return append(to, "\r\n"...)
}

// appendDelta appends a text delta that says when it was sent, as a chunk of its own.
func appendDelta(to []byte, at int64) []byte {
	var space [256]byte
	delta := append(space[:0], deltaStart...)
	delta = strconv.AppendInt(delta, at, 10)
	return appendChunk(to, append(delta, deltaEnd...))
}

// appendEnd appends what follows the deltas: their count as usage, the terminal event and the last chunk.
func appendEnd(to []byte, deltas int) []byte {
	end := event("content_block_stop", `{"type":"content_block_stop","index":0}`) +
		event("message_delta", fmt.Sprintf(`{"type":"message_delta","delta":{"stop_reason":"end_turn",`+
			`"stop_sequence":null},"usage":{"output_tokens":%d}}`, deltas)) +
		event("message_stop", `{"type":"message_stop"}`)
	return append(appendChunk(to, []byte(end)), "0\r\n\r\n"...)
}

// errorAnswer is an error of the status that was wished for.
func errorAnswer(status int) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %d Wished\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
		status, len(errorBody), errorBody)
}

// requestBytes is a request of the load; `events` 0 asks for JSON, `status` 0 for no error.
func requestBytes(target, header string, events, gapMicroseconds, status int) []byte {
	stream, wish := "false", "Four words, please."
	if events > 0 {
		stream, wish = "true", fmt.Sprintf("events=%d gap_us=%d", events, gapMicroseconds)
	}
	if status > 0 {
		wish = fmt.Sprintf("status=%d", status)
	}
	body := fmt.Sprintf(`{"model":"%s","max_tokens":4096,"stream":%s,"messages":[{"role":"user","content":"%s"}]}`,
		model, stream, wish)
	return fmt.Appendf(nil, "POST /v1/messages HTTP/1.1\r\nhost: %s\r\n%s\r\nanthropic-version: 2023-06-01\r\n"+
		"accept: application/json\r\nuser-agent: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
		target, header, len(body), body)
}

// wished is the number after `mark` in a body; 0 without one.
func wished(body, mark []byte) int {
	place := bytes.Index(body, mark)
	if place < 0 {
		return 0
	}
	return leadingNumber(body[place+len(mark):])
}

func atMost(bound, number int) int {
	if number > bound {
		return bound
	}
	return number
}

func leadingNumber(text []byte) int {
	number := 0
	for _, digit := range text {
		if digit < '0' || digit > '9' {
			break
		}
		number = number*10 + int(digit-'0')
	}
	return number
}
