// Package gateway is the only way out of a sandbox: for each database an
// operation may reach, a unix socket in a directory that is mounted into the
// sandbox. Each connection to it is forwarded to exactly the configured host and
// port, names resolved here, on the agent's host.
//
// It copies bytes it does not read. It never passes a descriptor into a sandbox:
// a connected socket can be disconnected there and connected to the host's
// loopback.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/wait"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	defaultMaxConns    = 32
	defaultDialTimeout = 10 * time.Second

	// unixWriteBuffer replaces the default of 208 KiB, with which bulk copies
	// wait. The kernel gives less when net.core.wmem_max is lower.
	unixWriteBuffer = 4 << 20

	// maxSocketPath is what fits into the kernel's sun_path with its final zero.
	maxSocketPath = 107
)

// Config says what to forward. Zero values of the limits mean their defaults.
type Config struct {
	// Dir is the operation's directory. It is made, with the mode 0755: the
	// directory above it, 0700, is what keeps other users of the host out.
	Dir       string
	Endpoints map[wire.Side]wire.Endpoint
	// MaxBytes is how much each side may send, and receive, over all its
	// connections. The connections of a side that exceeds it are cut and no new
	// ones are taken. 0: no limit.
	MaxBytes    int64
	MaxConns    int           // at one time, per side; default 32
	DialTimeout time.Duration // default 10 s
	// Dial connects to host:port over tcp; default a [net.Dialer], which resolves
	// names as the host does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Traffic is what a side has carried so far.
type Traffic struct {
	Connections int64 // accepted
	Refused     int64 // above the limit of connections, or after a cut
	Failed      int64 // the database could not be dialled
	Sent        int64 // bytes from the worker to the database
	Received    int64 // bytes from the database to the worker
	Cut         bool  // MaxBytes was exceeded
}

// Gateway forwards for one operation. There is no idle limit: a session may wait
// for hours while another one builds an index; TCP keep-alive finds dead servers.
type Gateway struct {
	dir  string
	side map[wire.Side]*side

	closing sync.Mutex // one Close at a time
	closed  bool       // guarded by closing; then dir may be another gateway's
}

// Open makes the directory and the sockets and starts forwarding. On error
// nothing is left.
func Open(config Config, log hclog.Logger) (*Gateway, error) {
	if config.MaxConns == 0 {
		config.MaxConns = defaultMaxConns
	}
	if config.DialTimeout == 0 {
		config.DialTimeout = defaultDialTimeout
	}
	if config.Dial == nil {
		config.Dial = (&net.Dialer{}).DialContext
	}
	//nolint:gosec // the worker, another user, must get in; others stop at the directory above
	if err := os.MkdirAll(config.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make operation directory: %w", err)
	}
	g := &Gateway{dir: config.Dir, side: make(map[wire.Side]*side)}
	// MkdirAll is subject to the umask.
	//nolint:gosec // as above
	if err := os.Chmod(config.Dir, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of operation directory: %w", err), g.Close())
	}
	for _, name := range sandbox.Sides() {
		endpoint, ok := config.Endpoints[name]
		if !ok {
			continue
		}
		s, err := openSide(config, name, endpoint, log.With("side", string(name)))
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.side[name] = s
	}
	return g, nil
}

// Traffic returns the counters of a side.
func (g *Gateway) Traffic(name wire.Side) Traffic {
	s, ok := g.side[name]
	if !ok {
		return Traffic{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	traffic := s.traffic
	traffic.Sent, traffic.Received, traffic.Cut = s.sent.bytes.Load(), s.received.bytes.Load(), s.cut
	return traffic
}

// Close ends every connection at once, waits until nothing is forwarded any more
// and removes sockets and directory. Closing twice is fine.
func (g *Gateway) Close() error {
	g.closing.Lock()
	defer g.closing.Unlock()
	if g.closed {
		return nil
	}
	for _, s := range g.side {
		s.stop()
	}
	for _, s := range g.side {
		s.running.Wait()
	}
	if err := Remove(g.dir); err != nil {
		return err
	}
	g.closed = true
	return nil
}

// Remove removes what a gateway left in dir when its process died, and dir.
// Nothing there is fine. Anything but sockets of ours is left alone, with an
// error.
func Remove(dir string) error {
	for _, name := range sandbox.Sides() {
		if err := os.Remove(filepath.Join(dir, sandbox.SocketName(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove socket: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove operation directory: %w", err)
	}
	return nil
}

// side is one socket and what goes through it.
type side struct {
	log         hclog.Logger
	address     string // host:port of the database
	dial        func(ctx context.Context, network, address string) (net.Conn, error)
	dialTimeout time.Duration
	maxConns    int
	listener    *net.UnixListener
	ctx         context.Context // ends dials
	cancel      context.CancelFunc
	sent        flow
	received    flow
	running     sync.WaitGroup
	// A worker decides how often it connects, not how much we log.
	refusedLog, failedLog rate.Sometimes

	mu      sync.Mutex // guards the rest
	traffic Traffic
	conns   map[net.Conn]struct{} // of both ends
	active  int                   // forwarded connections
	cut     bool
	closed  bool
}

func openSide(config Config, name wire.Side, endpoint wire.Endpoint, log hclog.Logger) (*side, error) {
	if endpoint.Host == "" || strings.HasPrefix(endpoint.Host, "/") || endpoint.Port < 1 || endpoint.Port > 65535 {
		return nil, fmt.Errorf("%q port %d of the %s is no address to forward to", endpoint.Host, endpoint.Port, name)
	}
	path := filepath.Join(config.Dir, sandbox.SocketName(name))
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket path %s has %d bytes, the kernel takes %d: configure a shorter run directory",
			path, len(path), maxSocketPath)
	}
	// A socket left by a process that died would make listening fail.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the worker: %w", err)
	}
	// The worker is another user; who may get here is decided by the directory.
	//nolint:gosec // connecting needs the right to write
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of socket: %w", err), listener.Close())
	}
	s := &side{
		log:         log,
		address:     net.JoinHostPort(endpoint.Host, strconv.Itoa(endpoint.Port)),
		dial:        config.Dial,
		dialTimeout: config.DialTimeout,
		maxConns:    config.MaxConns,
		listener:    listener,
		conns:       make(map[net.Conn]struct{}),
		refusedLog:  rate.Sometimes{First: 1, Interval: logEvery},
		failedLog:   rate.Sometimes{First: 1, Interval: logEvery},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.sent.limit, s.sent.over = config.MaxBytes, s.cutOff
	s.received.limit, s.received.over = config.MaxBytes, s.cutOff
	s.running.Go(s.accept)
	return s, nil
}

const logEvery = 10 * time.Second

// acceptPause is how long to wait after an error that passes, such as too many
// open files.
const acceptPause = 50 * time.Millisecond

func (s *side) accept() {
	for {
		conn, err := s.listener.AcceptUnix()
		switch {
		case err == nil:
			s.take(conn)
		case s.ctx.Err() != nil:
			return
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM),
			errors.Is(err, unix.ECONNABORTED):
			s.log.Warn("connection not accepted", "error", err)
			if !wait.For(s.ctx, acceptPause) {
				return
			}
		default:
			s.log.Error("socket no longer accepts", "error", err)
			return
		}
	}
}

// take forwards conn in the background, or refuses it by closing it.
func (s *side) take(conn *net.UnixConn) {
	s.mu.Lock()
	if s.closed || s.cut || s.active >= s.maxConns {
		s.traffic.Refused++
		full := !s.closed && !s.cut
		s.mu.Unlock()
		s.end(conn)
		if full {
			s.refusedLog.Do(func() { s.log.Warn("connection refused: too many at one time", "limit", s.maxConns) })
		}
		return
	}
	s.traffic.Connections++
	s.active++
	s.conns[conn] = struct{}{}
	s.running.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.running.Done()
		s.forward(conn)
		s.drop(conn)
		s.mu.Lock()
		s.active--
		s.mu.Unlock()
	}()
}

func (s *side) forward(conn *net.UnixConn) {
	if err := conn.SetWriteBuffer(unixWriteBuffer); err != nil {
		s.log.Warn("write buffer stays small", "error", err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.dialTimeout)
	server, err := s.dial(ctx, "tcp", s.address)
	cancel()
	if err != nil {
		if s.ctx.Err() == nil {
			s.mu.Lock()
			s.traffic.Failed++
			s.mu.Unlock()
			s.failedLog.Do(func() { s.log.Warn("database cannot be reached", "address", s.address, "error", err) })
		}
		return
	}
	if !s.keep(server) {
		return
	}
	defer s.drop(server)
	relay(conn, server, &s.sent, &s.received)
}

// keep remembers conn so that it can be cut, or closes it when that has happened.
func (s *side) keep(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.cut {
		s.end(conn)
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

func (s *side) drop(conn net.Conn) {
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
	s.end(conn)
}

func (s *side) end(conn net.Conn) {
	if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Debug("close connection", "error", err)
	}
}

// cutOff ends all connections and refuses new ones.
func (s *side) cutOff() {
	s.mu.Lock()
	already := s.cut
	s.cut = true
	s.endAll()
	s.mu.Unlock()
	if !already {
		s.log.Warn("connections cut: more bytes than allowed", "limit", s.sent.limit)
	}
}

// endAll closes every connection; mu is held.
func (s *side) endAll() {
	for conn := range s.conns {
		s.end(conn)
	}
	clear(s.conns)
}

func (s *side) stop() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Debug("close socket", "error", err)
	}
	s.endAll()
}
