// Package sandboxtest is the suite every sandbox passes: what its users rely on,
// whatever it is made of.
package sandboxtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/sandboxtest/probe"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/worker"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Suite runs on sandboxes whose worker has the probe as its engine.
type Suite struct {
	// Open makes a sandbox of an agent that no other test uses. It is removed by
	// the opener, traces included.
	Open func(t *testing.T) sandbox.Sandbox
}

// Run runs the suite.
func (s Suite) Run(t *testing.T) {
	for name, test := range map[string]func(*testing.T, sandbox.Sandbox){
		"life": life, "sides": sides, "stdin ends": stdinEnds, "removed while running": removedWhileRunning,
		"one per operation": onePerOperation, "clean": clean, "hostile ids": hostileIDs, "no endpoints": noEndpoints,
		"bytes are limited": bytesAreLimited, "start is cancelled": startIsCancelled, "many at a time": manyAtATime,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.Open(t)
			require.NoError(t, s.Prepare(t.Context()))
			require.NoError(t, s.Prepare(t.Context()), "repeatable")
			test(t, s)
			left, err := s.List(t.Context())
			require.NoError(t, err)
			require.Empty(t, left, "traces")
		})
	}
}

// Banner serves text on loopback.
func Banner(t *testing.T, text string) wire.Endpoint {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	ServeBanner(t, listener, text)
	address, ok := listener.Addr().(*net.TCPAddr)
	require.True(t, ok)
	return wire.Endpoint{Engine: probe.Type, Host: "127.0.0.1", Port: address.Port}
}

// ServeBanner says text to whoever connects, until the test ends.
func ServeBanner(t *testing.T, listener net.Listener, text string) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				_, _ = io.WriteString(conn, text)
			}()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
}

// Spec is one of an operation that reaches the endpoints.
func Spec(operationID string, endpoints map[wire.Side]wire.Endpoint) sandbox.Spec {
	return sandbox.Spec{OperationID: operationID, Fence: "1", Endpoints: endpoints}
}

func both(t *testing.T) map[wire.Side]wire.Endpoint {
	t.Helper()
	return map[wire.Side]wire.Endpoint{wire.Source: Banner(t, "source"), wire.Target: Banner(t, "target")}
}

// Start starts a box and a client of it.
func Start(t *testing.T, s sandbox.Sandbox, spec sandbox.Spec) (sandbox.Box, *worker.Client) {
	t.Helper()
	box, err := s.Start(t.Context(), spec)
	require.NoError(t, err)
	client := worker.NewClient(box, hclog.New(&hclog.LoggerOptions{Output: logTo{t}, Level: hclog.Debug}))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, box.Remove(ctx))
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, client.Ready(ctx))
	return box, client
}

// logTo writes a log where it is shown when the test fails.
type logTo struct{ t *testing.T }

func (l logTo) Write(line []byte) (int, error) {
	defer func() { _ = recover() }() // the test may be over
	l.t.Log(strings.TrimSpace(string(line)))
	return len(line), nil
}

// Probe does checks inside the box, on the given side.
func Probe(t *testing.T, client *worker.Client, endpoints map[wire.Side]wire.Endpoint, side wire.Side, checks ...probe.Check) []probe.Result {
	t.Helper()
	accounts := make(map[wire.Side]wire.Account)
	for side, endpoint := range endpoints {
		endpoint.Engine = probe.Type
		endpoint.Database = probe.Encode(checks...)
		accounts[side] = wire.Account{Endpoint: endpoint, Username: "u", Password: wire.NewSecret("not to be seen")}
	}
	require.NoError(t, client.Open(t.Context(), accounts))
	content, err := client.Inspect(t.Context(), side)
	require.NoError(t, err)
	var results []probe.Result
	require.NoError(t, json.Unmarshal(content, &results))
	require.Len(t, results, len(checks))
	return results
}

func list(t *testing.T, s sandbox.Sandbox) []sandbox.Info {
	t.Helper()
	infos, err := s.List(t.Context())
	require.NoError(t, err)
	return infos
}

// A box has facts, is listed, and is gone after Remove, which may be repeated.
func life(t *testing.T, s sandbox.Sandbox) {
	box, _ := Start(t, s, Spec("clone-1", both(t)))
	facts := box.Facts()
	require.NotEmpty(t, facts.ContainerID)
	require.NotEmpty(t, facts.WorkerImageID)
	require.NotEmpty(t, facts.BaseImageID)
	require.NotEmpty(t, facts.Runtime)
	infos := list(t, s)
	require.Len(t, infos, 1)
	require.Equal(t, "clone-1", infos[0].OperationID)
	require.Equal(t, facts.ContainerID, infos[0].ID)
	require.NotEmpty(t, infos[0].Agent)
	require.True(t, infos[0].Running)
	require.NoError(t, box.Remove(t.Context()))
	require.Empty(t, list(t, s))
	require.NoError(t, box.Remove(t.Context()))
	// The operation may have another one now.
	again, _ := Start(t, s, Spec("clone-1", both(t)))
	require.NoError(t, box.Remove(t.Context()), "the old one")
	require.Len(t, list(t, s), 1, "the new one stays")
	require.NoError(t, again.Remove(t.Context()))
}

// Each side reaches its own database, directly and as a client tool.
func sides(t *testing.T, s sandbox.Sandbox) {
	endpoints := both(t)
	box, client := Start(t, s, Spec("clone-1", endpoints))
	for _, side := range sandbox.Sides() {
		results := Probe(t, client, endpoints, side, probe.Check{Do: "dial"})
		require.Equal(t, string(side), results[0].Got, results[0].Err)
	}
	require.NoError(t, box.Remove(t.Context()))
}

// The end of stdin ends the worker, in good order; the box stays until removed.
func stdinEnds(t *testing.T, s sandbox.Sandbox) {
	box, client := Start(t, s, Spec("clone-1", both(t)))
	require.NoError(t, client.Close())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	exit, err := box.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, sandbox.Exit{}, exit)
	infos := list(t, s)
	require.Len(t, infos, 1)
	require.False(t, infos[0].Running)
	require.NoError(t, box.Remove(t.Context()))
}

// Remove ends a run in the middle: its caller hears that the worker ended.
func removedWhileRunning(t *testing.T, s sandbox.Sandbox) {
	endpoints := both(t)
	box, client := Start(t, s, Spec("clone-1", endpoints))
	Probe(t, client, endpoints, wire.Source)
	host := &begun{began: make(chan struct{})}
	failed := make(chan error, 1)
	go func() {
		_, err := client.Run(context.WithoutCancel(t.Context()), worker.RunRequest{OperationID: "clone-1"}, host)
		failed <- err
	}()
	<-host.began
	require.NoError(t, box.Remove(t.Context()))
	var e *operation.Error
	require.ErrorAs(t, <-failed, &e)
	_, err := box.Wait(t.Context())
	require.NoError(t, err)
}

// begun is a host that tells when a step has begun.
type begun struct{ began chan struct{} }

var _ engine.Host = (*begun)(nil)

func (b *begun) Begin(context.Context, wire.Step, json.RawMessage) error { close(b.began); return nil }
func (b *begun) End(context.Context, wire.Step, int64, int64) error      { return nil }
func (b *begun) Progress(wire.Progress)                                  {}
func (b *begun) Verified(context.Context, operation.TableReport) error   { return nil }

// A second sandbox for an operation is refused and does not disturb the first.
func onePerOperation(t *testing.T, s sandbox.Sandbox) {
	endpoints := both(t)
	box, client := Start(t, s, Spec("clone-1", endpoints))
	_, err := s.Start(t.Context(), Spec("clone-1", both(t)))
	var e *operation.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, wire.CodeConflict, e.Code)
	require.Equal(t, "target", Probe(t, client, endpoints, wire.Target, probe.Check{Do: "dial"})[0].Got)
	require.NoError(t, box.Remove(t.Context()))
}

// Clean removes what runs; of nothing it says yes, as often as one likes.
func clean(t *testing.T, s sandbox.Sandbox) {
	require.NoError(t, s.Clean(t.Context(), "clone-1"))
	Start(t, s, Spec("clone-1", both(t)))
	other, _ := Start(t, s, Spec("clone-10", both(t)))
	require.NoError(t, s.Clean(t.Context(), "clone-1"))
	require.NoError(t, s.Clean(t.Context(), "clone-1"))
	infos := list(t, s)
	require.Len(t, infos, 1)
	require.Equal(t, "clone-10", infos[0].OperationID)
	require.NoError(t, other.Remove(t.Context()))
}

// An id that is no plain word starts and cleans nothing.
func hostileIDs(t *testing.T, s sandbox.Sandbox) {
	for _, id := range []string{"", ".", "..", "../../tmp/x", "/etc", "a/b", "a b", "-f", "a=b", "a\x00b", "a\nb", strings.Repeat("a", 200)} {
		_, err := s.Start(t.Context(), Spec(id, both(t)))
		require.Error(t, err, "%q", id)
		require.Error(t, s.Clean(t.Context(), id), "%q", id)
	}
}

// A sandbox that reaches nothing, or no address, is not made.
func noEndpoints(t *testing.T, s sandbox.Sandbox) {
	_, err := s.Start(t.Context(), Spec("clone-1", nil))
	require.Error(t, err)
	_, err = s.Start(t.Context(), Spec("clone-1", map[wire.Side]wire.Endpoint{wire.Source: {Host: "/var/run", Port: 1}}))
	require.Error(t, err)
}

// More bytes than allowed do not come through.
func bytesAreLimited(t *testing.T, s sandbox.Sandbox) {
	endpoints := map[wire.Side]wire.Endpoint{wire.Source: Banner(t, strings.Repeat("x", 500)), wire.Target: Banner(t, "target")}
	spec := Spec("clone-1", endpoints)
	spec.MaxBytes = 100
	box, client := Start(t, s, spec)
	require.LessOrEqual(t, len(Probe(t, client, endpoints, wire.Source, probe.Check{Do: "dial"})[0].Got), 100)
	require.Equal(t, "target", Probe(t, client, endpoints, wire.Target, probe.Check{Do: "dial"})[0].Got)
	require.NoError(t, box.Remove(t.Context()))
}

// A start whose caller has gone leaves nothing.
func startIsCancelled(t *testing.T, s sandbox.Sandbox) {
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		box, err := s.Start(ctx, Spec("clone-1", both(t)))
		cancel()
		if err == nil { // it was quicker
			require.NoError(t, box.Remove(t.Context()))
		}
		require.Empty(t, list(t, s), "after %s", after)
	}
}

// Operations do not disturb each other.
func manyAtATime(t *testing.T, s sandbox.Sandbox) {
	var running sync.WaitGroup
	for n := range 3 {
		endpoints := map[wire.Side]wire.Endpoint{wire.Source: Banner(t, fmt.Sprint("source ", n))}
		running.Go(func() {
			box, err := s.Start(t.Context(), Spec(fmt.Sprint("clone-", n), endpoints))
			if err != nil {
				t.Error(err)
				return
			}
			client := worker.NewClient(box, hclog.NewNullLogger())
			got, err := dialOnce(t.Context(), client, endpoints)
			if err != nil || got != fmt.Sprint("source ", n) {
				t.Errorf("%d: %q, %v", n, got, err)
			}
			if err := box.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
}

func dialOnce(ctx context.Context, client *worker.Client, endpoints map[wire.Side]wire.Endpoint) (string, error) {
	source := endpoints[wire.Source]
	source.Database = probe.Encode(probe.Check{Do: "dial"})
	if err := client.Open(ctx, map[wire.Side]wire.Account{wire.Source: {Endpoint: source}}); err != nil {
		return "", err
	}
	content, err := client.Inspect(ctx, wire.Source)
	if err != nil {
		return "", err
	}
	var results []probe.Result
	if err := json.Unmarshal(content, &results); err != nil {
		return "", err
	}
	return results[0].Got, nil
}
