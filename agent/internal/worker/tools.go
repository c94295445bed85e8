package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/gateway"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// tools are the loopback listeners client tools connect to: they know host names
// and ports only, and libpq does no TLS over a unix socket. The sandbox's hosts
// file leads the server's real name here, so verify-full holds.
type tools struct {
	log hclog.Logger

	mu        sync.Mutex
	listeners map[netip.AddrPort]net.Listener
	conns     map[net.Conn]struct{}
	closed    bool
}

func newTools(log hclog.Logger) *tools {
	return &tools{log: log, listeners: make(map[netip.AddrPort]net.Listener), conns: make(map[net.Conn]struct{})}
}

// open makes sure that connections to the endpoint's host and port lead to dial,
// and returns where a tool shall connect. A source and a target of one host and
// port are one server, reached through either socket.
func (t *tools) open(side wire.Side, endpoint wire.Endpoint, dial func(context.Context) (net.Conn, error)) (host string, port int, err error) {
	host, addresses, err := t.addresses(side, endpoint)
	if err != nil {
		return "", 0, err
	}
	if endpoint.Port < 1 || endpoint.Port > 65535 {
		return "", 0, &operation.Error{Code: wire.CodeInvalid, Reason: fmt.Sprintf("%d is not a port", endpoint.Port)}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return "", 0, &operation.Error{Code: wire.CodeCancelled, Reason: "the worker is stopping"}
	}
	for _, address := range addresses {
		at := netip.AddrPortFrom(address, uint16(endpoint.Port))
		if _, ok := t.listeners[at]; ok {
			continue
		}
		listener, err := net.Listen("tcp4", at.String())
		if err != nil {
			return "", 0, &operation.Error{
				Code: wire.CodeSandbox, Reason: "the worker cannot listen for a client tool on " + at.String(), Err: err,
			}
		}
		t.listeners[at] = listener
		go t.accept(listener, dial)
	}
	return host, endpoint.Port, nil
}

// addresses tells where to listen so that a tool given the returned host gets
// there.
func (t *tools) addresses(side wire.Side, endpoint wire.Endpoint) (host string, addresses []netip.Addr, err error) {
	if literal, err := netip.ParseAddr(endpoint.Host); err == nil {
		if literal.Is4() && literal.IsLoopback() {
			return endpoint.Host, []netip.Addr{literal}, nil
		}
		// An address cannot be led elsewhere, so the tool gets another one, which
		// no certificate names.
		if endpoint.SSLMode == "verify-full" {
			return "", nil, &operation.Error{
				Code:   wire.CodeUnsupported,
				Reason: "client tools cannot verify a server that is configured by address",
				Hint:   "use the name in the server's certificate as the host of connection " + endpoint.Connection,
			}
		}
		substitute := netip.AddrFrom4([4]byte{127, 0, 0, 4})
		if side == wire.Target {
			substitute = substitute.Next()
		}
		return substitute.String(), []netip.Addr{substitute}, nil
	}
	// Whatever the hosts file says is what the tool's own resolver will say.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	addresses, err = net.DefaultResolver.LookupNetIP(ctx, "ip4", endpoint.Host)
	if err != nil {
		return "", nil, &operation.Error{
			Code: wire.CodeSandbox, Reason: "the sandbox has no loopback address for the host of connection " + endpoint.Connection, Err: err,
		}
	}
	for i, address := range addresses {
		addresses[i] = address.Unmap()
		if !addresses[i].IsLoopback() {
			return "", nil, &operation.Error{
				Code: wire.CodeSandbox, Reason: "the host of connection " + endpoint.Connection + " leads out of the sandbox",
			}
		}
	}
	return endpoint.Host, addresses, nil
}

func (t *tools) accept(listener net.Listener, dial func(context.Context) (net.Conn, error)) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				t.log.Error("tool listener stopped", "address", listener.Addr().String(), "error", err)
			}
			return
		}
		go t.forward(conn, dial)
	}
}

// forward copies between a tool and the database until both have ended.
func (t *tools) forward(conn net.Conn, dial func(context.Context) (net.Conn, error)) {
	if !t.keep(conn) {
		return
	}
	defer t.drop(conn)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	server, err := dial(ctx)
	if err != nil {
		t.log.Warn("tool cannot be connected", "error", err)
		return
	}
	if !t.keep(server) {
		return
	}
	defer t.drop(server)
	gateway.Relay(conn, server)
}

// keep remembers conn for close; it closes conn and answers false when the
// worker is stopping.
func (t *tools) keep(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		t.end(conn)
		return false
	}
	t.conns[conn] = struct{}{}
	return true
}

func (t *tools) drop(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, conn)
	t.end(conn)
}

func (t *tools) end(conn net.Conn) {
	if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.log.Debug("close a tool's connection", "error", err)
	}
}

// close ends every listener and connection.
func (t *tools) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for at, listener := range t.listeners {
		if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.log.Debug("close a tool listener", "address", at.String(), "error", err)
		}
	}
	for conn := range t.conns {
		t.end(conn)
	}
}
