// Command demo shows the whole of dbops on one machine, on real parts: a Vault
// with the plugin, two PostgreSQL servers, an agent, and a person who asks for a
// clone. Every expectation is checked; the first that fails ends it with 1.
//
//	go run ./testenv/demo [-scale=N]   (make demo)
//	go run ./testenv/demo -down        (make demo-down) removes leftovers
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

func main() {
	scale := flag.Int("scale", 10, "size of the shop: about 3 MB each")
	down := flag.Bool("down", false, "only remove what an interrupted demo left")
	flag.Parse()
	os.Exit(testenv.Run(os.Stderr, func(t testenv.TB) {
		alone(t)
		removeLeftovers(t)
		if *down {
			fmt.Println("Nothing of an earlier demo is left.")
			return
		}
		show(t, *scale)
	}))
}

// demo is one showing.
type demo struct {
	t   testenv.TB
	out io.Writer
	// ctx ends with the demo, so that no program outlives it.
	ctx     context.Context
	dir     string // private to this showing, removed at its end
	started time.Time
	number  int  // of the step
	done    bool // it came to its end
}

func show(t testenv.TB, scale int) {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	d := &demo{t: t, out: os.Stdout, ctx: ctx, dir: t.TempDir(), started: time.Now()}

	s := d.startServers(scale)
	d.setUp(s)
	d.connect(s)
	d.introduce(s)
	d.startAgent(s)
	id := d.clone(s)
	d.checkCopy(s)
	d.showEvents(s, id)
	d.checkLogins(s, id)
	d.showReceipt(s, id)
	d.refusals(s)
	d.done = true
	d.say("\nDone in %s. Everything that was started is removed now.", time.Since(d.started).Round(time.Second))
}

// step begins a part of the showing.
func (d *demo) step(title string) {
	d.number++
	d.say("\n== %d. %s  (%s)", d.number, title, time.Since(d.started).Round(100*time.Millisecond))
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, format+"\n", args...)
}

// shown prints a command as somebody would type it.
func (d *demo) shown(who, command string) {
	d.say("   %s$ %s", who, command)
}

// expect ends the demo unless ok.
func (d *demo) expect(ok bool, format string, args ...any) {
	d.t.Helper()
	if !ok {
		d.t.Fatalf("demo: "+format, args...)
	}
	d.say("   ✓ %s", strings.TrimPrefix(fmt.Sprintf(format, args...), "expected: "))
}
