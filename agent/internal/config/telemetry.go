package config

import (
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
)

// Telemetry says where the agent's metrics are served.
type Telemetry struct {
	// Listen is an address of the loopback with a port, or unix:// and the absolute
	// path of a socket. There is no other: metrics are served without TLS and without
	// a login, so whoever scrapes from elsewhere puts something with both in front.
	Listen string `hcl:"listen"`
}

// maxSocketPath is what the kernel takes.
const maxSocketPath = 107

// Address is where to listen, in the terms of package net. The error is the way out
// of an address that cannot be.
func (t Telemetry) Address() (network, address string, err error) {
	if path, ok := strings.CutPrefix(t.Listen, "unix://"); ok {
		if !filepath.IsAbs(path) || len(path) > maxSocketPath {
			return "", "", errors.New("must be unix:// and an absolute path of at most 107 bytes")
		}
		return "unix", path, nil
	}
	// A name such as localhost could be anything in a resolver's eyes.
	parsed, err := netip.ParseAddrPort(t.Listen)
	if err != nil || !parsed.Addr().Unmap().IsLoopback() || parsed.Port() == 0 {
		return "", "", errors.New("must be an address of the loopback with a port, such as 127.0.0.1:9649, or unix:///…: " +
			"metrics have neither TLS nor a login; from elsewhere, scrape through a proxy that has both")
	}
	return "tcp", parsed.String(), nil
}
