package testenv

import "net"

// BlackHole is the address of a server that takes connections and never answers,
// until the test ends.
func BlackHole(t TB) *net.TCPAddr {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("make a black hole: %v", err)
	}
	t.Cleanup(func() { _ = listener.Close() }) // nobody else closes it
	return listener.Addr().(*net.TCPAddr)      //nolint:forcetypeassert // of a TCP listener
}
