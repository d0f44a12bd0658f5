// iocopy server ADDR | proxy ADDR TARGET | client ADDR CONNECTIONS BYTES
//
// The proxy joins each connection to one of its own with io.Copy both ways, which the Go runtime turns into splice(2). The
// server sends back what it gets; the client checks every byte and prints what it saw.
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"strconv"
	"sync"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "iocopy:", err)
		os.Exit(1)
	}
}

func serve(addr string, handle func(*net.TCPConn)) {
	listener, err := net.Listen("tcp", addr)
	must(err)
	fmt.Println("ready")
	for {
		conn, err := listener.Accept()
		must(err)
		go handle(conn.(*net.TCPConn))
	}
}

func join(to, from *net.TCPConn, done *sync.WaitGroup) {
	defer done.Done()
	io.Copy(to, from)
	to.CloseWrite()
}

func proxy(target string) func(*net.TCPConn) {
	return func(front *net.TCPConn) {
		defer front.Close()
		back, err := net.Dial("tcp", target)
		must(err)
		defer back.Close()
		var done sync.WaitGroup
		done.Add(2)
		go join(back.(*net.TCPConn), front, &done)
		go join(front, back.(*net.TCPConn), &done)
		done.Wait()
	}
}

func echo(conn *net.TCPConn) {
	defer conn.Close()
	buffer := make([]byte, 32*1024)
	for {
		n, err := conn.Read(buffer)
		if n > 0 {
			if _, err := conn.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func client(addr string, connections, size int) {
	for i := 0; i < connections; i++ {
		sent := make([]byte, size)
		rand.New(rand.NewSource(int64(i))).Read(sent)
		conn, err := net.Dial("tcp", addr)
		must(err)
		go func() {
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), 1+rand.Intn(60000))
				_, err := conn.Write(rest[:n])
				must(err)
				rest = rest[n:]
			}
			must(conn.(*net.TCPConn).CloseWrite())
		}()
		got, err := io.ReadAll(conn)
		must(err)
		fmt.Printf("connection %d: %d bytes, equal %v, %x\n", i, len(got), bytes.Equal(got, sent), sha256.Sum256(got))
		conn.Close()
	}
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func main() {
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "server":
		serve(args[1], echo)
	case len(args) == 3 && args[0] == "proxy":
		serve(args[1], proxy(args[2]))
	case len(args) == 4 && args[0] == "client":
		connections, err := strconv.Atoi(args[2])
		must(err)
		size, err := strconv.Atoi(args[3])
		must(err)
		client(args[1], connections, size)
	default:
		fmt.Fprintln(os.Stderr, "usage: iocopy server ADDR | proxy ADDR TARGET | client ADDR CONNECTIONS BYTES")
		os.Exit(2)
	}
}
