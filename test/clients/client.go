// A Go program as a guest runs one: net/http over HTTP/1.1 and HTTP/2, and a call as gRPC makes it, with nothing but the standard library.
//
//	client NAME PORT CA-FILE h1|h2|grpc [ADDRESS]
//
// Dials ADDRESS, or what NAME resolves to, verifies NAME against the CA alone, prints one line for each thing it got, and ends with status 1 at the first fault.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func client(host string, port string, ca string, h2 bool) *http.Client {
	pem, err := os.ReadFile(ca)
	check(err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		check(fmt.Errorf("no certificate in %s", ca))
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots},
		ForceAttemptHTTP2: h2,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
		},
	}
	if !h2 {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	return &http.Client{Transport: transport}
}

func plain(c *http.Client, base string) {
	for i := 0; i < 3; i++ {
		response, err := c.Get(fmt.Sprintf("%s/%d", base, i))
		check(err)
		body, err := io.ReadAll(response.Body)
		check(err)
		fmt.Printf("%s %d %s\n", response.Proto, response.StatusCode, strings.TrimSpace(string(body)))
	}
	// Of no known length, with a trailer behind it.
	const size = 3_000_000
	pipe, write := io.Pipe()
	request, err := http.NewRequest("POST", base+"/up", pipe)
	check(err)
	request.Trailer = http.Header{"X-Sum": nil}
	digest := sha256.New()
	go func() {
		block := []byte(strings.Repeat("abcdefghij", 1000))
		for i := 0; i < size; i += len(block) {
			digest.Write(block)
			if _, err := write.Write(block); err != nil {
				return
			}
		}
		request.Trailer.Set("X-Sum", fmt.Sprintf("%x", digest.Sum(nil)))
		write.Close()
	}()
	response, err := c.Do(request)
	check(err)
	body, err := io.ReadAll(response.Body)
	check(err)
	fmt.Printf("up %d %s trailer %s\n", response.StatusCode, strings.TrimSpace(string(body)), response.Trailer.Get("X-Got"))
}

// message is length-prefixed as gRPC has it.
func message(text string) []byte {
	out := make([]byte, 5+len(text))
	binary.BigEndian.PutUint32(out[1:], uint32(len(text)))
	copy(out[5:], text)
	return out
}

func read(from io.Reader) (string, error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(from, head); err != nil {
		return "", err
	}
	text := make([]byte, binary.BigEndian.Uint32(head[1:]))
	_, err := io.ReadFull(from, text)
	return string(text), err
}

// A call in both directions at once: each message is answered before the next is sent.
func call(c *http.Client, base string) {
	pipe, write := io.Pipe()
	request, err := http.NewRequest("POST", base+"/pkg.Service/Chat", pipe)
	check(err)
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("Te", "trailers")
	response, err := c.Do(request)
	check(err)
	fmt.Println(response.Proto, response.StatusCode)
	for i := 0; i < 3; i++ {
		_, err := write.Write(message(fmt.Sprintf("message %d", i)))
		check(err)
		text, err := read(response.Body)
		check(err)
		fmt.Println(text)
	}
	write.Close()
	_, err = read(response.Body)
	fmt.Println(err, response.Trailer.Get("Grpc-Status"), response.Trailer.Get("Grpc-Message"))
}

func main() {
	name, port, ca, what := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	base := "https://" + name + ":" + port
	host := name
	if len(os.Args) > 5 {
		host = os.Args[5]
	}
	c := client(host, port, ca, what != "h1")
	if what == "grpc" {
		call(c, base)
	} else {
		plain(c, base)
	}
}
