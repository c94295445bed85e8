package gateway

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/race"
)

// serve answers every connection to a new listener on loopback with handle.
func serve(t *testing.T, handle func(*net.TCPConn)) wire.Endpoint {
	t.Helper()
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return
			}
			handlers.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		handlers.Wait()
	})
	return wire.Endpoint{Host: "127.0.0.1", Port: listener.Addr().(*net.TCPAddr).Port}
}

func open(t *testing.T, config Config) *Gateway {
	t.Helper()
	if config.Dir == "" {
		config.Dir = filepath.Join(shortDir(t), "op")
	}
	g, err := Open(config, hclog.NewNullLogger())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	return g
}

// shortDir is a directory whose path leaves room for a socket's name; that of
// t.TempDir grows with the test's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func dial(t *testing.T, g *Gateway, side wire.Side) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(g.dir, sandbox.SocketName(side)), Net: "unix"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

func sources(endpoint wire.Endpoint) map[wire.Side]wire.Endpoint {
	return map[wire.Side]wire.Endpoint{wire.Source: endpoint}
}

func echo(conn *net.TCPConn) {
	_, _ = io.Copy(conn, conn)
	_ = conn.CloseWrite()
}

// Each side leads to its own server, by name as well.
func TestGateway_SidesAreApart(t *testing.T) {
	t.Parallel()
	endpoints := make(map[wire.Side]wire.Endpoint)
	for _, side := range sandbox.Sides() {
		endpoints[side] = serve(t, func(conn *net.TCPConn) { _, _ = io.WriteString(conn, string(side)) })
	}
	named := endpoints[wire.Target]
	named.Host = "localhost"
	endpoints[wire.Target] = named
	g := open(t, Config{Endpoints: endpoints})
	for _, side := range sandbox.Sides() {
		banner, err := io.ReadAll(dial(t, g, side))
		require.NoError(t, err)
		require.Equal(t, string(side), string(banner))
	}
}

// What goes in comes out, bulk and pieces, both ways at once; a half-close
// reaches the other end while that still sends; bytes are counted.
func TestGateway_CopiesBothWays(t *testing.T) {
	t.Parallel()
	content := make([]byte, 24<<20+17)
	_, err := rand.Read(content)
	require.NoError(t, err)
	g := open(t, Config{Endpoints: sources(serve(t, echo))})
	conn := dial(t, g, wire.Source)
	go func() {
		for rest := content; len(rest) > 0; {
			n := min(len(rest), 8<<10+len(rest)%511)
			if _, err := conn.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
		_ = conn.CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(content), sha256.Sum256(got))
	traffic := g.Traffic(wire.Source)
	require.EqualValues(t, len(content), traffic.Sent)
	require.EqualValues(t, len(content), traffic.Received)
	require.EqualValues(t, 1, traffic.Connections)
	require.Equal(t, Traffic{}, g.Traffic(wire.Target))
}

// Question and answer still work on a connection that has carried a stream,
// without a noticeable wait: reading in bulk must not hold single bytes back.
func TestGateway_TalkAfterStream(t *testing.T) {
	t.Parallel()
	g := open(t, Config{Endpoints: sources(serve(t, echo))})
	conn := dial(t, g, wire.Source)
	for round := range 5 {
		stream := bytes.Repeat([]byte{byte(round)}, 3<<20+round)
		go func() { _, _ = conn.Write(stream) }()
		_, err := io.ReadFull(conn, make([]byte, len(stream)))
		require.NoError(t, err)
		began := time.Now()
		for range 50 {
			_, err := conn.Write([]byte("?"))
			require.NoError(t, err)
			_, err = io.ReadFull(conn, make([]byte, 1))
			require.NoError(t, err)
		}
		require.Less(t, time.Since(began), 2*time.Second*race.Slowdown)
	}
}

// A stream that stops in the middle delivers all that has been sent, and a wait
// longer than any deadline of ours does not end it.
func TestGateway_StreamThatRests(t *testing.T) {
	t.Parallel()
	const rest = 100<<10 + 1 // below what bulk mode waits for
	goOn := make(chan struct{})
	g := open(t, Config{Endpoints: sources(serve(t, func(conn *net.TCPConn) {
		_, _ = conn.Write(make([]byte, 4<<20+rest))
		<-goOn
		_, _ = io.WriteString(conn, "end")
	}))})
	conn := dial(t, g, wire.Source)
	_, err := io.ReadFull(conn, make([]byte, 4<<20+rest))
	require.NoError(t, err)
	time.Sleep(50 * time.Millisecond)
	close(goOn)
	tail, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "end", string(tail))
}

// Above the limit of bytes a side is cut, with all its connections, and stays so.
// The other side goes on.
func TestGateway_MaxBytes(t *testing.T) {
	t.Parallel()
	g := open(t, Config{MaxBytes: 1 << 20, Endpoints: map[wire.Side]wire.Endpoint{
		wire.Source: serve(t, func(conn *net.TCPConn) { _, _ = io.Copy(conn, zeros{}) }),
		wire.Target: serve(t, echo),
	}})
	idle := dial(t, g, wire.Source)
	n, err := io.Copy(io.Discard, idle)
	require.LessOrEqual(t, n, int64(1<<20))
	_ = err // a reset is as good an end
	require.True(t, g.Traffic(wire.Source).Cut)
	n, _ = io.Copy(io.Discard, dial(t, g, wire.Source))
	require.Zero(t, n)

	target := dial(t, g, wire.Target)
	_, err = target.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(target, make([]byte, 1))
	require.NoError(t, err)
	require.False(t, g.Traffic(wire.Target).Cut)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// More connections than allowed are closed at once; one that ends makes room.
func TestGateway_MaxConns(t *testing.T) {
	t.Parallel()
	g := open(t, Config{MaxConns: 2, Endpoints: sources(serve(t, echo))})
	talk := func(conn *net.UnixConn) error {
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 1))
		return err
	}
	first, second := dial(t, g, wire.Source), dial(t, g, wire.Source)
	require.NoError(t, talk(first))
	require.NoError(t, talk(second))
	require.Error(t, talk(dial(t, g, wire.Source)))
	require.NoError(t, first.Close())
	require.Eventually(t, func() bool { return talk(dial(t, g, wire.Source)) == nil }, 30*time.Second, 10*time.Millisecond)
	require.GreaterOrEqual(t, g.Traffic(wire.Source).Refused, int64(1))
}

// A server that is not there ends the connection and is counted.
func TestGateway_ServerDown(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	require.NoError(t, listener.Close())
	g := open(t, Config{Endpoints: sources(wire.Endpoint{Host: "127.0.0.1", Port: port})})
	got, err := io.ReadAll(dial(t, g, wire.Source))
	require.NoError(t, err)
	require.Empty(t, got)
	require.EqualValues(t, 1, g.Traffic(wire.Source).Failed)
}

// Close ends live connections at both ends at once and removes everything.
func TestGateway_Close(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	g := open(t, Config{Endpoints: sources(serve(t, func(conn *net.TCPConn) {
		_, _ = conn.Write([]byte("x"))
		_, _ = io.Copy(io.Discard, conn)
		close(ended)
	}))})
	conn := dial(t, g, wire.Source)
	_, err := io.ReadFull(conn, make([]byte, 1))
	require.NoError(t, err)
	began := time.Now()
	require.NoError(t, g.Close())
	<-ended
	_, err = conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.Less(t, time.Since(began), time.Second*race.Slowdown)
	require.NoDirExists(t, g.dir)
	require.NoError(t, g.Close())
}

// Modes are what keeps others out and lets the worker in, whatever the umask.
func TestOpen_Modes(t *testing.T) {
	t.Parallel()
	g := open(t, Config{Endpoints: sources(serve(t, echo))})
	info, err := os.Stat(g.dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), info.Mode().Perm())
	info, err = os.Stat(filepath.Join(g.dir, "source.sock"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o666), info.Mode().Perm())
}

// A socket left by a dead process is replaced.
func TestOpen_StaleSocket(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), "op")
	require.NoError(t, os.Mkdir(dir, 0o700))
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "source.sock"), Net: "unix"})
	require.NoError(t, err)
	stale.SetUnlinkOnClose(false)
	require.NoError(t, stale.Close())
	g := open(t, Config{Dir: dir, Endpoints: sources(serve(t, echo))})
	require.NoError(t, dial(t, g, wire.Source).Close())
}

// What cannot be forwarded to is refused, with the reason, and leaves nothing.
func TestOpen_Refuses(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]Config{
		"kernel takes 107": {Dir: filepath.Join(shortDir(t), strings.Repeat("d", 100)), Endpoints: sources(wire.Endpoint{Host: "h", Port: 1})},
		"no address":       {Dir: filepath.Join(shortDir(t), "op"), Endpoints: sources(wire.Endpoint{Host: "/var/run/postgresql", Port: 1})},
		"port 0":           {Dir: filepath.Join(shortDir(t), "op"), Endpoints: sources(wire.Endpoint{Host: "h"})},
		"port 65536":       {Dir: filepath.Join(shortDir(t), "op"), Endpoints: sources(wire.Endpoint{Host: "h", Port: 65536})},
	} {
		_, err := Open(config, hclog.NewNullLogger())
		require.ErrorContains(t, err, name)
		require.NoDirExists(t, config.Dir)
	}
}
