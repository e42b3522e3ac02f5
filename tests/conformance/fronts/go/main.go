// Makes the gRPC calls that it reads, one JSON object a line, and prints what it saw of each.
//
//	conformance_client ADDRESS [CA [CERTIFICATE KEY]]
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// One line of the input: a call, or the id of one to cancel.
type order struct {
	ID       int
	Cancel   bool
	Path     string
	Payload  string
	Metadata [][2]string // the values of binary keys in hexadecimal
	Seconds  float64     // 0 is no deadline
	Gzip     bool
}

type seen struct {
	ID       int
	Code     string
	Message  string
	Payload  string
	Details  string
	Initial  map[string][]string
	Trailing map[string][]string
}

// Bytes in and out, as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "" }

var names = map[codes.Code]string{
	codes.OK: "OK", codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN",
	codes.InvalidArgument: "INVALID_ARGUMENT", codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
	codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED",
	codes.OutOfRange: "OUT_OF_RANGE", codes.Unimplemented: "UNIMPLEMENTED",
	codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE", codes.DataLoss: "DATA_LOSS",
	codes.Unauthenticated: "UNAUTHENTICATED",
}

func main() {
	conn, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(trusted(os.Args[2:])),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		log.Fatal(err)
	}
	var lock sync.Mutex
	var going sync.WaitGroup
	output := json.NewEncoder(os.Stdout)
	cancels := map[int]context.CancelFunc{}
	input := bufio.NewReader(os.Stdin)
	for {
		line, err := input.ReadBytes('\n')
		if err != nil {
			break
		}
		var asked order
		if err := json.Unmarshal(line, &asked); err != nil {
			log.Fatal(err)
		}
		if asked.Cancel {
			lock.Lock()
			cancels[asked.ID]()
			lock.Unlock()
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		if asked.Seconds != 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(asked.Seconds*float64(time.Second)))
		}
		lock.Lock()
		cancels[asked.ID] = cancel
		lock.Unlock()
		going.Go(func() {
			found := call(ctx, conn, asked)
			lock.Lock()
			defer lock.Unlock()
			if err := output.Encode(found); err != nil {
				log.Fatal(err)
			}
		})
	}
	going.Wait()
}

func call(ctx context.Context, conn *grpc.ClientConn, asked order) seen {
	var pairs []string
	for _, pair := range asked.Metadata {
		value := pair[1]
		if strings.HasSuffix(pair[0], "-bin") {
			value = string(fromHex(value))
		}
		pairs = append(pairs, pair[0], value)
	}
	var initial, trailing metadata.MD
	options := []grpc.CallOption{grpc.ForceCodec(raw{}), grpc.Header(&initial), grpc.Trailer(&trailing)}
	if asked.Gzip {
		options = append(options, grpc.UseCompressor("gzip"))
	}
	var answer []byte
	request := fromHex(asked.Payload)
	err := conn.Invoke(metadata.AppendToOutgoingContext(ctx, pairs...), asked.Path, &request, &answer, options...)
	found := seen{ID: asked.ID, Code: "OK", Payload: hex.EncodeToString(answer),
		Initial: listed(initial), Trailing: listed(trailing)}
	if err != nil {
		ended := status.Convert(err)
		found.Code, found.Message = names[ended.Code()], ended.Message()
		if len(ended.Proto().GetDetails()) > 0 {
			packed, err := proto.Marshal(ended.Proto())
			if err != nil {
				log.Fatal(err)
			}
			found.Details = hex.EncodeToString(packed)
		}
	}
	return found
}

// The metadata with all values in hexadecimal.
func listed(found metadata.MD) map[string][]string {
	all := map[string][]string{}
	for key, values := range found {
		for _, value := range values {
			all[key] = append(all[key], hex.EncodeToString([]byte(value)))
		}
	}
	return all
}

func trusted(files []string) credentials.TransportCredentials {
	if len(files) == 0 {
		return insecure.NewCredentials()
	}
	authority, err := os.ReadFile(files[0])
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(authority)
	if len(files) == 3 {
		pair, err := tls.LoadX509KeyPair(files[1], files[2])
		if err != nil {
			log.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(config)
}

func fromHex(text string) []byte {
	found, err := hex.DecodeString(text)
	if err != nil {
		log.Fatal(err)
	}
	return found
}
