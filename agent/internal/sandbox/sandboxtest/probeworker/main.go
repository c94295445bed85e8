// Command probeworker is the worker process with the probe as its only engine. It
// stands in for dbops-agent in tests of the sandbox.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/sandboxtest/probe"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/worker"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	switch {
	case len(args) == 1 && args[0] == "worker":
		return worker.Serve(context.Background(), os.Stdin, os.Stdout, os.Stderr, []engine.Engine{probe.Engine{}})
	case len(args) == 1 && args[0] == probe.OrphanArg:
		return probe.Orphan()
	case len(args) == 2 && args[0] == probe.OrphanArg:
		time.Sleep(100 * time.Millisecond) //nolint:forbidigo // until the parent is gone
		return 0
	case len(args) == 3 && args[0] == "banner":
		return banner(args[1], args[2])
	case len(args) == 2 && args[0] == "read":
		return read(args[1])
	default:
		fmt.Fprintln(os.Stderr, "usage: probeworker worker | banner <address> <text> | read <address>")
		return 1
	}
}

// banner says text to whoever connects.
func banner(address, text string) int {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Fprint(conn, text)
		conn.Close()
	}
}

// read prints what is said at address. A container's network may need a moment.
func read(address string) int {
	var result probe.Result
	for range 50 {
		result = probe.Try(context.Background(), probe.Check{Do: "tcp", Address: address})[0]
		if result.Got != "" {
			fmt.Fprint(os.Stdout, result.Got)
			return 0
		}
		time.Sleep(100 * time.Millisecond) //nolint:forbidigo // a test program
	}
	fmt.Fprintln(os.Stderr, "nothing is said:", result.Err)
	return 0
}
