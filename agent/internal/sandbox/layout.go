package sandbox

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// SocketDir is where a worker finds its sockets. Nothing else of the host is
// mounted into a sandbox.
const SocketDir = "/run/dbops"

// SocketName is the name of a side's socket in the directory of an operation.
func SocketName(side wire.Side) string { return string(side) + ".sock" }

// Sides lists the sides a sandbox may have, in a stable order.
func Sides() []wire.Side { return []wire.Side{wire.Source, wire.Target} }

// maxOperationID leaves room for the rest of a socket's path, which the kernel
// limits to 107 bytes.
const maxOperationID = 64

// CheckOperationID refuses an id that is no plain word of letters, digits and
// dashes: it becomes part of paths, container names and label filters.
func CheckOperationID(id string) error {
	if id == "" || len(id) > maxOperationID {
		return fmt.Errorf("operation id has %d characters, allowed are 1 to %d", len(id), maxOperationID)
	}
	for i := range len(id) {
		c := id[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (c != '-' || i == 0) {
			return fmt.Errorf("operation id %q is not made of letters, digits and dashes", id)
		}
	}
	return nil
}

// ToolHosts tells which names of database servers must lead to a loopback
// address inside the sandbox, so that client tools connect to the worker's own
// listener under the server's real name and TLS still verifies it. One address
// per name: a source and target on one host share it and differ by port. An
// address literal or localhost needs no entry.
func ToolHosts(endpoints map[wire.Side]wire.Endpoint) (map[string]netip.Addr, error) {
	addresses := map[wire.Side]netip.Addr{
		wire.Source: netip.AddrFrom4([4]byte{127, 0, 0, 2}),
		wire.Target: netip.AddrFrom4([4]byte{127, 0, 0, 3}),
	}
	hosts := make(map[string]netip.Addr)
	for _, side := range Sides() {
		endpoint, ok := endpoints[side]
		if !ok {
			continue
		}
		host := strings.ToLower(endpoint.Host)
		if _, err := netip.ParseAddr(host); err == nil || host == "localhost" {
			continue
		}
		if !hostName(host) {
			return nil, fmt.Errorf("host %q of the %s is neither a host name nor an address", endpoint.Host, side)
		}
		if _, taken := hosts[host]; !taken {
			hosts[host] = addresses[side]
		}
	}
	return hosts, nil
}

// hostName reports whether name may stand in a hosts file: nothing in it can end
// the entry or start another one.
func hostName(name string) bool {
	if name == "" || len(name) > 253 || name[0] == '-' || name[0] == '.' {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}
