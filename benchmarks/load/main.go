// A load client for the benchmarks: unary calls with ready bytes, a fixed number in flight (closed
// loop) or at a fixed rate (open loop), and what they took. It knows no message: requests come from
// a file, one in hexadecimal a line, and an answer is compared with the line of a second file.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (raw) Name() string { return "proto" }

func lines(path string) [][]byte {
	file, err := os.Open(path)
	if err != nil {
		panic(err)
	}
	defer file.Close()
	var found [][]byte
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 64<<20)
	for scanner.Scan() {
		data, err := hex.DecodeString(scanner.Text())
		if err != nil {
			panic(err)
		}
		found = append(found, data)
	}
	return found
}

type result struct {
	Calls   int            `json:"calls"`
	Good    int            `json:"good"`
	Wrong   int            `json:"wrong"`
	Codes   map[string]int `json:"codes"`
	Seconds float64        `json:"seconds"`
	CPU     float64        `json:"cpu_seconds"`
	P50     float64        `json:"p50_us"`
	P95     float64        `json:"p95_us"`
	P99     float64        `json:"p99_us"`
	P999    float64        `json:"p999_us"`
	Max     float64        `json:"max_us"`
	// How long after it was due a call was sent: of the open loop, and no fault of the server's.
	Late99 float64 `json:"late_p99_us"`
}

// Waits in the kernel: the timers of Go may be a millisecond late when nothing else runs.
func sleepUntil(due time.Time) {
	for wait := time.Until(due); wait > 0; wait = time.Until(due) {
		span := syscall.NsecToTimespec(wait.Nanoseconds())
		_ = syscall.Nanosleep(&span, nil)
	}
}

func quantile(took []time.Duration, part float64) float64 {
	if len(took) == 0 {
		return 0
	}
	return float64(took[min(len(took)-1, int(part*float64(len(took))))].Nanoseconds()) / 1e3
}

func cpu() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

func main() {
	address := flag.String("address", "", "where to call; unix:/path or host:port")
	method := flag.String("method", "", "the full method")
	requests := flag.String("requests", "", "file of requests")
	prefixes := flag.String("answers", "", "file of what each answer begins with; none = not compared")
	inFlight := flag.Int("in-flight", 1, "calls at once")
	rate := flag.Float64("rate", 0, "calls a second, sent when they are due whatever came back; 0 = closed loop")
	calls := flag.Int("calls", 1000, "calls in all")
	limit := flag.Float64("seconds", 0, "the closed loop ends then, if not before; 0 = when all calls are made")
	connections := flag.Int("connections", 1, "connections")
	timeout := flag.Float64("timeout", 10, "deadline of a call in seconds")
	fresh := flag.Bool("fresh-metadata", false, "send two values that no other call has")
	asFrames := flag.Bool("frames", false, "write frames without a gRPC library: cheap enough for overloads")
	authority := flag.String("ca", "", "PEM file of the authority: TLS")
	flag.Parse()
	bearer := os.Getenv("LOAD_BEARER")
	asked := lines(*requests)
	var expected [][]byte
	if *prefixes != "" {
		expected = lines(*prefixes)
	}
	tell := func(found result) {
		out, _ := json.Marshal(found)
		fmt.Println(string(out))
	}
	seconds := func(number float64) time.Duration { return time.Duration(number * float64(time.Second)) }
	if *asFrames {
		tell(frames(*address, *method, bearer, asked, expected, *rate, *inFlight, *calls, *connections,
			seconds(*timeout), seconds(*limit)))
		return
	}

	var how credentials.TransportCredentials = insecure.NewCredentials()
	if *authority != "" {
		pem, err := os.ReadFile(*authority)
		if err != nil {
			panic(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		how = credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"})
	}
	channels := make([]*grpc.ClientConn, *connections)
	for i := range channels {
		channel, err := grpc.NewClient(*address, grpc.WithTransportCredentials(how),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(64<<20)))
		if err != nil {
			panic(err)
		}
		channels[i] = channel
		channel.Connect()
	}
	var wrong atomic.Int64
	var lock sync.Mutex
	seen := map[codes.Code]int{}
	took, late := make([]time.Duration, *calls), make([]time.Duration, *calls)
	call := func(i int, due time.Time) {
		late[i] = time.Since(due)
		ctx, cancel := context.WithDeadline(context.Background(), due.Add(seconds(*timeout)))
		defer cancel()
		pairs := []string{"authorization", "Bearer " + bearer}
		if *fresh {
			pairs = append(pairs, "x-request-id", fmt.Sprintf("5f1c6c9e-0d0f-4f4e-9b7a-%012x", i),
				"traceparent", fmt.Sprintf("00-4bf92f3577b34da6a3ce929d%08x-00f067aa0ba902b7-01", i))
		}
		ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs(pairs...))
		var answer []byte
		err := channels[i%len(channels)].Invoke(ctx, *method, asked[i%len(asked)], &answer)
		took[i] = time.Since(due)
		code := status.Code(err)
		lock.Lock()
		seen[code]++
		lock.Unlock()
		if err == nil && expected != nil && !bytes.HasPrefix(answer, expected[i%len(expected)]) {
			wrong.Add(1)
		}
	}
	// Connected before it counts.
	for i := range channels {
		call(i%*calls, time.Now())
	}
	seen = map[codes.Code]int{}
	wrong.Store(0)
	clear(took)
	clear(late)
	started, spent := time.Now(), cpu()
	var group sync.WaitGroup
	if *rate > 0 {
		runtime.LockOSThread()
		for i := 0; i < *calls; i++ {
			due := started.Add(time.Duration(float64(i) / *rate * float64(time.Second)))
			sleepUntil(due)
			group.Add(1)
			go func() { defer group.Done(); call(i, due) }()
		}
	} else {
		var next atomic.Int64
		for range *inFlight {
			group.Add(1)
			go func() {
				defer group.Done()
				for {
					i := int(next.Add(1)) - 1
					now := time.Now()
					if i >= *calls || *limit > 0 && now.Sub(started) >= seconds(*limit) {
						return
					}
					call(i, now)
				}
			}()
		}
	}
	group.Wait()
	all := time.Since(started).Seconds()
	answered := func(times []time.Duration) []time.Duration {
		// Those that were not made when the time was over are none.
		times = slices.DeleteFunc(times, func(each time.Duration) bool { return each == 0 })
		slices.Sort(times)
		return times
	}
	took, late = answered(took), answered(late)
	found := map[string]int{}
	for code, count := range seen {
		found[strings.ToUpper(code.String())] = count
	}
	tell(result{len(took), seen[codes.OK] - int(wrong.Load()), int(wrong.Load()), found, all, cpu() - spent,
		quantile(took, 0.5), quantile(took, 0.95), quantile(took, 0.99), quantile(took, 0.999),
		quantile(took, 1), quantile(late, 0.99)})
}
