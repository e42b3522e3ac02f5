// Calls written as frames, without a gRPC library: an overload must cost its maker a fraction of
// what it costs the server, or on one machine the maker is what is measured. It does what clients
// do: it keeps the peer's limit of streams and its window, tells each call's remaining time, and
// resets a stream when the time is over. Plaintext only.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
)

const (
	frameHeader = 9
	// How often it is looked for calls whose time is over.
	tick = time.Millisecond
	// Calls that are due within it are sent together.
	gather = 100 * time.Microsecond
)

type stream struct {
	call   int
	due    time.Time
	answer []byte
	status string
}

type link struct {
	load    *load
	socket  net.Conn
	wake    chan struct{}
	lock    sync.Mutex
	dead    bool
	nextID  uint32
	open    map[uint32]*stream
	sent    []uint32 // in the order of their due times
	waiting []*stream
	out     []byte
	limit   int
	window  int
}

// What all links share.
type load struct {
	head, tail      []byte // of a header block, around the value of grpc-timeout
	asked, expected [][]byte
	timeout         time.Duration
	ended           atomic.Int64
	lock            sync.Mutex
	codes           map[string]int
	wrong           int
	took, late      []time.Duration
	next            func() // a call has ended
}

func block(fields ...string) []byte {
	var out bytes.Buffer
	encoder := hpack.NewEncoder(&out)
	for i := 0; i < len(fields); i += 2 {
		// Never indexed: the bytes mean the same whatever came before.
		_ = encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true})
	}
	return out.Bytes()
}

func frame(out []byte, size int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	out = append(out, byte(size>>16), byte(size>>8), byte(size), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(out, id)
}

func (l *load) finish(one *stream, code string, now time.Time) {
	took := now.Sub(one.due)
	l.lock.Lock()
	if code == "OK" && took > l.timeout {
		code = "LATE"
	}
	if code == "OK" && l.expected != nil && !bytes.HasPrefix(one.answer, l.expected[one.call%len(l.expected)]) {
		code = "WRONG"
		l.wrong++
	}
	l.codes[code]++
	if code == "OK" {
		l.took = append(l.took, took)
	}
	l.lock.Unlock()
	if l.next != nil {
		l.next()
	}
	l.ended.Add(1)
}

func (k *link) submit(call int, due time.Time) {
	k.lock.Lock()
	k.waiting = append(k.waiting, &stream{call: call, due: due})
	k.lock.Unlock()
}

func (k *link) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Gives up what is too late, and sends what waits, as far as the peer's limits allow.
func (k *link) write() {
	for range k.wake {
		var gone []*stream
		code := strings.ToUpper(codes.DeadlineExceeded.String())
		k.lock.Lock()
		now := time.Now()
		if k.dead {
			gone, k.waiting, code = k.waiting, nil, strings.ToUpper(codes.Unavailable.String())
		}
		for len(k.sent) > 0 {
			one := k.open[k.sent[0]]
			if one != nil {
				if now.Sub(one.due) < k.load.timeout {
					break
				}
				delete(k.open, k.sent[0])
				k.out = frame(k.out, 4, http2.FrameRSTStream, 0, k.sent[0])
				k.out = binary.BigEndian.AppendUint32(k.out, uint32(http2.ErrCodeCancel))
				gone = append(gone, one)
			}
			k.sent = k.sent[1:]
		}
		for len(k.waiting) > 0 {
			one := k.waiting[0]
			message := k.load.asked[one.call%len(k.load.asked)]
			size := len(message) + 5
			left := k.load.timeout - now.Sub(one.due)
			if left > 0 && (len(k.open) >= k.limit || k.window < size) {
				break
			}
			k.waiting = k.waiting[1:]
			if left <= 0 {
				gone = append(gone, one)
				continue
			}
			id := k.nextID
			k.nextID += 2
			k.open[id] = one
			k.sent = append(k.sent, id)
			k.window -= size
			value := strconv.FormatInt(left.Microseconds(), 10) + "u"
			k.out = frame(k.out, len(k.load.head)+1+len(value)+len(k.load.tail), http2.FrameHeaders,
				http2.FlagHeadersEndHeaders, id)
			k.out = append(k.out, k.load.head...)
			k.out = append(append(k.out, byte(len(value))), value...)
			k.out = append(k.out, k.load.tail...)
			k.out = frame(k.out, size, http2.FrameData, http2.FlagDataEndStream, id)
			k.out = binary.BigEndian.AppendUint32(append(k.out, 0), uint32(len(message)))
			k.out = append(k.out, message...)
			k.load.lock.Lock()
			k.load.late = append(k.load.late, now.Sub(one.due))
			k.load.lock.Unlock()
		}
		out := k.out
		k.out = nil
		k.lock.Unlock()
		for _, one := range gone {
			k.load.finish(one, code, now)
		}
		if len(out) > 0 {
			_, _ = k.socket.Write(out) // who reads will find out that it has ended
		}
	}
}

func (k *link) read() {
	in := bufio.NewReaderSize(k.socket, 64<<10)
	status := ""
	decoder := hpack.NewDecoder(4096, func(field hpack.HeaderField) {
		if field.Name == "grpc-status" {
			status = field.Value
		}
	})
	var head [frameHeader]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			break
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(in, payload); err != nil {
			break
		}
		flags, id := http2.Flags(head[4]), binary.BigEndian.Uint32(head[5:])&(1<<31-1)
		switch http2.FrameType(head[3]) {
		case http2.FrameHeaders:
			status = ""
			if _, err := decoder.Write(payload); err != nil {
				panic(err)
			}
			if flags.Has(http2.FlagHeadersEndStream) {
				k.done(id, status)
			}
		case http2.FrameData:
			k.lock.Lock()
			if one := k.open[id]; one != nil {
				one.answer = append(one.answer, payload...)
			}
			k.lock.Unlock()
		case http2.FrameRSTStream:
			k.done(id, "RESET_"+strconv.Itoa(int(binary.BigEndian.Uint32(payload))))
		case http2.FrameSettings:
			if !flags.Has(http2.FlagSettingsAck) {
				k.lock.Lock()
				for ; len(payload) >= 6; payload = payload[6:] {
					if http2.SettingID(binary.BigEndian.Uint16(payload)) == http2.SettingMaxConcurrentStreams {
						k.limit = int(binary.BigEndian.Uint32(payload[2:]))
					}
				}
				k.out = frame(k.out, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
				k.lock.Unlock()
				k.poke()
			}
		case http2.FramePing:
			if !flags.Has(http2.FlagPingAck) {
				k.lock.Lock()
				k.out = append(frame(k.out, 8, http2.FramePing, http2.FlagPingAck, 0), payload...)
				k.lock.Unlock()
				k.poke()
			}
		case http2.FrameWindowUpdate:
			if id == 0 {
				k.lock.Lock()
				k.window += int(binary.BigEndian.Uint32(payload))
				k.lock.Unlock()
				k.poke()
			}
		}
	}
	k.lock.Lock()
	k.dead = true
	for _, one := range k.open {
		k.waiting = append(k.waiting, one)
	}
	clear(k.open)
	k.lock.Unlock()
	k.poke()
}

func (k *link) done(id uint32, status string) {
	k.lock.Lock()
	one := k.open[id]
	delete(k.open, id)
	k.lock.Unlock()
	if one == nil {
		return // given up before
	}
	if number, err := strconv.Atoi(status); err == nil {
		status = strings.ToUpper(codes.Code(number).String())
	}
	if len(one.answer) >= 5 {
		one.answer = one.answer[5:]
	}
	k.load.finish(one, status, time.Now())
	k.poke()
}

// Makes calls; what it tells of times is of those that were answered in time.
func frames(address, method, bearer string, asked, expected [][]byte, rate float64, inFlight, calls,
	connections int, timeout, limit time.Duration) result {
	network, where := "tcp", address
	if path, isUnix := strings.CutPrefix(address, "unix:"); isUnix {
		network, where = "unix", path
	}
	l := &load{asked: asked, expected: expected, timeout: timeout, codes: map[string]int{}}
	l.head = append(block(":method", "POST", ":scheme", "http", ":path", method, ":authority", "localhost",
		"content-type", "application/grpc", "te", "trailers"), 0x10, byte(len("grpc-timeout")))
	l.head = append(l.head, "grpc-timeout"...)
	l.tail = block("authorization", "Bearer "+bearer)
	links := make([]*link, connections)
	for i := range links {
		socket, err := net.Dial(network, where)
		if err != nil {
			panic(err)
		}
		k := &link{load: l, socket: socket, wake: make(chan struct{}, 1), nextID: 1, limit: 1, window: 65535,
			open: map[uint32]*stream{}}
		k.out = append(k.out, http2.ClientPreface...)
		k.out = frame(k.out, 0, http2.FrameSettings, 0, 0)
		k.out = frame(k.out, 4, http2.FrameWindowUpdate, 0, 0)
		k.out = binary.BigEndian.AppendUint32(k.out, 1<<31-1-65535)
		links[i] = k
		go k.write()
		go k.read()
		k.submit(0, time.Now())
		k.poke()
	}
	wait := func(count int) {
		for l.ended.Load() < int64(count) {
			time.Sleep(tick)
			for _, k := range links {
				k.poke()
			}
		}
	}
	wait(connections) // connected before it counts
	l.lock.Lock()
	l.codes, l.wrong, l.took, l.late = map[string]int{}, 0, nil, nil
	l.lock.Unlock()
	l.ended.Store(0)
	started, spent := time.Now(), cpu()
	made := calls
	if rate > 0 {
		runtime.LockOSThread()
		looked := started
		for i := 0; i < calls; {
			now := time.Now()
			var due time.Time
			for ; i < calls; i++ {
				due = started.Add(time.Duration(float64(i) / rate * float64(time.Second)))
				if due.After(now) {
					break
				}
				links[i%connections].submit(i, due)
				links[i%connections].poke()
			}
			if now.Sub(looked) >= tick {
				looked = now
				for _, k := range links {
					k.poke()
				}
			}
			sleepUntil(now.Add(min(max(gather, due.Sub(now)), tick)))
		}
		wait(calls)
	} else {
		var handed, submitted atomic.Int64
		l.next = func() {
			i, now := int(handed.Add(1))-1, time.Now()
			if i < calls && (limit <= 0 || now.Sub(started) < limit) {
				submitted.Add(1)
				links[i%connections].submit(i, now)
				links[i%connections].poke()
			}
		}
		for range inFlight {
			l.next()
		}
		for l.ended.Load() < submitted.Load() {
			time.Sleep(tick)
		}
		made = int(submitted.Load())
	}
	seconds := time.Since(started).Seconds()
	l.lock.Lock()
	defer l.lock.Unlock()
	slices.Sort(l.took)
	slices.Sort(l.late)
	return result{made, l.codes["OK"], l.wrong, l.codes, seconds, cpu() - spent, quantile(l.took, 0.5),
		quantile(l.took, 0.95), quantile(l.took, 0.99), quantile(l.took, 0.999), quantile(l.took, 1),
		quantile(l.late, 0.99)}
}
