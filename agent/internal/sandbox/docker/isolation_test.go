package docker

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/sandboxtest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/sandboxtest/probe"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

const (
	atOnce    = 200  // ms; what a refused connection may take
	dnsAtOnce = 1500 // ms; the resolver's one attempt of one second, and some
)

// Out of a worker its two databases answer and nothing else does: not the host,
// by any of its addresses, not another container, not the network, not the
// hypervisor, not a resolver. Each thing that must not answer is shown to be
// there first, by its own words: a connection that is made proves nothing where
// a network accepts every one.
func TestWorker_ReachesItsDatabasesOnly(t *testing.T) {
	t.Parallel()
	s := open(t, config(t))
	token := randomToken(t)

	// What is there.
	var reachable []probe.Check // from the host; from the worker none of them
	loopback := sandboxtest.Banner(t, token)
	reachable = append(reachable, probe.Check{Do: "tcp", Address: address("127.0.0.1", loopback.Port)})
	everywhere, err := net.Listen("tcp", ":0")
	require.NoError(t, err)
	sandboxtest.ServeBanner(t, everywhere, token)
	port := everywhere.Addr().(*net.TCPAddr).Port
	hostAddresses := hostAddresses(t)
	bridged, bridge := bridgeNetwork(t, s)
	hostAddresses = append(hostAddresses, bridge)
	for _, host := range append(hostAddresses, "127.0.0.1") {
		reachable = append(reachable, probe.Check{Do: "tcp", Address: address(host, port)})
	}
	onBridge, err := net.Listen("tcp", address(bridge, 0))
	require.NoError(t, err)
	sandboxtest.ServeBanner(t, onBridge, token)
	bridgePort := onBridge.Addr().(*net.TCPAddr).Port
	reachable = append(reachable, probe.Check{Do: "tcp", Address: address(bridge, bridgePort)})
	neighbour := neighbourContainer(t, s, bridged, token)
	reachable = append(reachable, probe.Check{Do: "tcp", Address: neighbour})
	// An abstract socket is in the network namespace, not in the file system.
	abstract, err := net.Listen("unix", "@dbops-test-"+token)
	require.NoError(t, err)
	sandboxtest.ServeBanner(t, abstract, token)
	reachable = append(reachable, probe.Check{Do: "unix", Address: "@dbops-test-" + token})

	for _, result := range probe.Try(t.Context(), reachable...) {
		require.Equal(t, token, result.Got, "%s must be up: %s", result.Address, result.Err)
	}

	// A container on the bridge reaches what is on the bridge: the checks
	// below can see a leak.
	require.Equal(t, token, fromBridge(t, s, bridged, address(bridge, bridgePort)))

	datagrams := listenUDP(t)
	broadcasts := []string{"224.0.0.1", "255.255.255.255"}
	var sends []probe.Check
	for _, to := range append(append([]string{}, hostAddresses...), broadcasts...) {
		if !strings.Contains(to, ":") {
			sends = append(sends, probe.Check{Do: "udp", Address: address(to, datagrams.port), Args: []string{"worker " + token}})
		}
	}
	for i, result := range probe.Try(t.Context(), retell(sends, "host "+token)...) {
		if i < len(sends)-len(broadcasts) {
			require.Empty(t, result.Err, result.Address)
		}
	}
	require.Eventually(t, func() bool { return datagrams.count("host "+token) > 0 }, 5*time.Second, 10*time.Millisecond,
		"the listener must hear datagrams")

	// The databases.
	ends := endpoints(t)
	ends[wire.Source] = named(ends[wire.Source], "source.example.test")
	ends[wire.Target] = named(ends[wire.Target], "target.example.test")
	s.config.Dial = onLoopback
	_, client := sandboxtest.Start(t, s, sandboxtest.Spec("clone-1", ends))
	for _, side := range sandbox.Sides() {
		got := sandboxtest.Probe(t, client, ends, side, probe.Check{Do: "dial"}, probe.Check{Do: "tool"})
		require.Equal(t, string(side), got[0].Got, got[0].Err)
		require.Equal(t, string(side), got[1].Got, got[1].Err)
	}

	// And nothing else.
	refused := append([]probe.Check{}, reachable...)
	refused = append(refused, sends...)
	refused = append(refused,
		probe.Check{Do: "tcp", Address: "192.0.2.77:443"}, // outside, by documentation addresses and real ones
		probe.Check{Do: "tcp", Address: "198.51.100.7:443"},
		probe.Check{Do: "tcp", Address: "1.1.1.1:443"},
		probe.Check{Do: "tcp", Address: "10.77.88.99:4242"},
		probe.Check{Do: "tcp", Address: "169.254.169.254:80"},
		probe.Check{Do: "tcp", Address: "[2606:4700:4700::1111]:443"},
		probe.Check{Do: "tcp", Address: "[fe80::1]:80"},
		probe.Check{Do: "tcp", Address: "127.0.0.11:53"},
		probe.Check{Do: "udp", Address: address("ff02::1", datagrams.port), Args: []string{"worker " + token}},
		probe.Check{Do: "udp", Address: "239.255.255.250:1900", Args: []string{"worker " + token}},
		probe.Check{Do: "vsock", Address: "2:1024"}, // the hypervisor
		probe.Check{Do: "vsock", Address: "1:1024"}, // the host's own loopback
		probe.Check{Do: "vsock", Address: "4294967295:1024"},
		probe.Check{Do: "dns", Address: "127.0.0.11:53", Args: []string{"example.com", "tcp"}},
	)
	for _, family := range []int{unix.AF_INET6, unix.AF_PACKET, unix.AF_VSOCK, unix.AF_ALG, unix.AF_BLUETOOTH, unix.AF_XDP, unix.AF_TIPC, unix.AF_KEY} {
		refused = append(refused, probe.Check{Do: "socket", Address: strconv.Itoa(family)})
	}
	for _, result := range sandboxtest.Probe(t, client, ends, wire.Source, refused...) {
		require.NotEmpty(t, result.Err, "%s %s", result.Do, result.Address)
		require.Empty(t, result.Got, "%s %s", result.Do, result.Address)
		require.NotContains(t, result.Err, "connected", "%s %s", result.Do, result.Address)
		require.Less(t, result.Millis, int64(atOnce), "%s %s: %s", result.Do, result.Address, result.Err)
	}
	names := []probe.Check{
		{Do: "dns", Address: "127.0.0.11:53", Args: []string{token + ".example.com", "udp"}},
		{Do: "dns", Address: "127.0.0.1:53", Args: []string{token + ".example.com", "udp"}},
		{Do: "lookup", Address: token + ".example.com"},
		{Do: "lookup", Address: "example.com"},
		{Do: "lookup", Address: "one.one.one.one"},
		{Do: "lookup", Address: hostName(t) + ".local"},
	}
	for _, result := range sandboxtest.Probe(t, client, ends, wire.Target, names...) {
		require.NotEmpty(t, result.Err, "%s %s", result.Do, result.Address)
		require.Less(t, result.Millis, int64(dnsAtOnce), "%s %s: %s", result.Do, result.Address, result.Err)
	}
	require.Zero(t, datagrams.count("worker "+token), "a datagram got out")
}

func address(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

func named(endpoint wire.Endpoint, name string) wire.Endpoint {
	endpoint.Host = name
	return endpoint
}

// onLoopback takes the test's names for this host.
func onLoopback(ctx context.Context, network, target string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
}

func randomToken(t *testing.T) string {
	t.Helper()
	token := make([]byte, 8)
	_, err := rand.Read(token)
	require.NoError(t, err)
	return hex.EncodeToString(token)
}

func hostName(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	require.NoError(t, err)
	return name
}

// hostAddresses are those of the host's interfaces, without loopback, link-local
// and the bridges of other tests, which come and go.
func hostAddresses(t *testing.T) []string {
	t.Helper()
	interfaces, err := net.Interfaces()
	require.NoError(t, err)
	var hosts []string
	for _, one := range interfaces {
		if strings.HasPrefix(one.Name, "br-") || strings.HasPrefix(one.Name, "veth") {
			continue
		}
		addresses, err := one.Addrs()
		require.NoError(t, err)
		for _, a := range addresses {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
				hosts = append(hosts, ip.IP.String())
			}
		}
	}
	require.NotEmpty(t, hosts)
	return hosts
}

// bridgeNetwork makes a bridge as Docker's default one is, which not every host
// has, and returns its name and the host's address on it.
func bridgeNetwork(t *testing.T, s *Sandbox) (name, gateway string) {
	t.Helper()
	name = "dbops-" + s.config.AgentName
	_, err := s.docker.NetworkCreate(t.Context(), name, network.CreateOptions{Labels: map[string]string{testenv.Label: s.config.AgentName}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.docker.NetworkRemove(context.Background(), name)) })
	made, err := s.docker.NetworkInspect(t.Context(), name, network.InspectOptions{})
	require.NoError(t, err)
	require.NotEmpty(t, made.IPAM.Config)
	return name, made.IPAM.Config[0].Gateway
}

// runProbe runs the probe worker's program in a container of its own on the
// bridge.
func runProbe(t *testing.T, s *Sandbox, bridged string, command ...string) string {
	t.Helper()
	require.NoError(t, s.Prepare(t.Context()))
	created, err := s.docker.ContainerCreate(t.Context(),
		&container.Config{
			Image: s.image.id, Entrypoint: append([]string{workerPath}, command...),
			Labels: map[string]string{testenv.Label: s.config.AgentName},
		},
		&container.HostConfig{NetworkMode: container.NetworkMode(bridged)},
		nil, nil, "dbops-"+s.config.AgentName+"-"+randomToken(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.docker.ContainerRemove(context.Background(), created.ID, removeAll)) })
	require.NoError(t, s.docker.ContainerStart(t.Context(), created.ID, container.StartOptions{}))
	return created.ID
}

// neighbourContainer says token on a port of its own; it returns its address.
func neighbourContainer(t *testing.T, s *Sandbox, bridged, token string) string {
	t.Helper()
	id := runProbe(t, s, bridged, "banner", ":4000", token)
	state, err := s.docker.ContainerInspect(t.Context(), id)
	require.NoError(t, err)
	at := address(state.NetworkSettings.Networks[bridged].IPAddress, 4000)
	require.Eventually(t, func() bool {
		return probe.Try(t.Context(), probe.Check{Do: "tcp", Address: at})[0].Got == token
	}, 30*time.Second, 20*time.Millisecond)
	return at
}

// fromBridge is what a container on the bridge reads at an address.
func fromBridge(t *testing.T, s *Sandbox, bridged, at string) string {
	t.Helper()
	id := runProbe(t, s, bridged, "read", at)
	waiting, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ended, failed := s.docker.ContainerWait(waiting, id, container.WaitConditionNotRunning)
	select {
	case answer := <-ended:
		require.Zero(t, answer.StatusCode)
	case err := <-failed:
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	require.Eventually(t, func() bool { // the log may lag behind
		logs, err := s.docker.ContainerLogs(t.Context(), id, container.LogsOptions{ShowStdout: true, ShowStderr: true})
		if err != nil {
			return false
		}
		defer logs.Close()
		stdout.Reset()
		stderr.Reset()
		_, err = stdcopy.StdCopy(&stdout, &stderr, logs)
		return err == nil && stdout.Len()+stderr.Len() > 0
	}, 30*time.Second, 50*time.Millisecond)
	require.Empty(t, stderr.String())
	return stdout.String()
}

// heard is what a listener for datagrams has heard.
type heard struct {
	port int

	mu    sync.Mutex
	texts map[string]int
}

func (h *heard) count(text string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.texts[text]
}

// listenUDP hears everything sent to a port of this host, on all addresses, as
// avahi or syslog do.
func listenUDP(t *testing.T) *heard {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{})
	require.NoError(t, err)
	h := &heard{port: conn.LocalAddr().(*net.UDPAddr).Port, texts: make(map[string]int)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 512)
		for {
			n, _, err := conn.ReadFromUDP(buffer)
			if err != nil {
				return
			}
			h.mu.Lock()
			h.texts[string(buffer[:n])]++
			h.mu.Unlock()
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return h
}

func retell(checks []probe.Check, text string) []probe.Check {
	retold := make([]probe.Check, len(checks))
	for i, check := range checks {
		check.Args = []string{text}
		retold[i] = check
	}
	return retold
}

// TLS reaches through the sandbox from end to end: the server's real name is
// verified on both ways, and a wrong name is refused.
func TestWorker_TLS(t *testing.T) {
	t.Parallel()
	c := config(t)
	c.Dial = onLoopback
	s := open(t, c)
	const name = "db.example.test"
	certificate, authority := certify(t, name)
	listener, err := tls.Listen("tcp4", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	require.NoError(t, err)
	sandboxtest.ServeBanner(t, listener, "secured")
	endpoint := wire.Endpoint{Host: name, Port: listener.Addr().(*net.TCPAddr).Port, SSLMode: "verify-full", RootCA: authority}
	other := endpoint
	other.Host = "other.example.test"
	ends := map[wire.Side]wire.Endpoint{wire.Source: endpoint, wire.Target: other}
	_, client := sandboxtest.Start(t, s, sandboxtest.Spec("clone-1", ends))

	got := sandboxtest.Probe(t, client, ends, wire.Source,
		probe.Check{Do: "dial-tls"}, probe.Check{Do: "tool-tls"},
		probe.Check{Do: "dial-tls", Address: "wrong.example.test"}, probe.Check{Do: "tool-tls", Address: "127.0.0.2"})
	require.Equal(t, "secured", got[0].Got, got[0].Err)
	require.Equal(t, "secured", got[1].Got, got[1].Err)
	require.Contains(t, got[2].Err, "certificate is valid for "+name)
	require.Contains(t, got[3].Err, "certificate")
	got = sandboxtest.Probe(t, client, ends, wire.Target, probe.Check{Do: "dial-tls"}, probe.Check{Do: "tool-tls"})
	for _, result := range got {
		require.Contains(t, result.Err, "certificate is valid for "+name)
	}
}

// certify makes a certificate for name and the PEM of its authority.
func certify(t *testing.T, name string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// A real client tool verifies a real PostgreSQL through the sandbox, and refuses
// it under a name it has no certificate for. Two servers of one port have one
// loopback address each.
func TestWorker_PsqlVerifiesServer(t *testing.T) {
	t.Parallel()
	testenv.Require(t, testenv.PartPostgres)
	const name = "db.example.test"
	server := testenv.Postgres(t, testenv.PostgresOptions{ServerName: name, RequireTLS: true})
	authority, err := os.ReadFile(server.CAFile)
	require.NoError(t, err)
	c := config(t)
	c.Dial = onLoopback
	s := open(t, c)
	endpoint := wire.Endpoint{Host: name, Port: server.Port, SSLMode: "verify-full", RootCA: string(authority)}
	ends := map[wire.Side]wire.Endpoint{wire.Source: endpoint, wire.Target: named(endpoint, "other.example.test")}
	_, client := sandboxtest.Start(t, s, sandboxtest.Spec("clone-1", ends))

	psql := func(side wire.Side, host string) probe.Result {
		// The listener is opened by "tool"; PostgreSQL says nothing first, so its
		// own result is of no interest.
		sandboxtest.Probe(t, client, ends, side, probe.Check{Do: "open-tool"})
		results := sandboxtest.Probe(t, client, ends, side,
			probe.Check{Do: "write", Address: "/tmp/ca.pem", Args: []string{string(authority)}},
			probe.Check{
				Do: "exec",
				Args: []string{
					"psql", "-X", "-At", "-c", "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()",
					fmt.Sprintf("host=%s port=%d user=%s dbname=postgres sslmode=verify-full sslrootcert=/tmp/ca.pem", host, server.Port, server.User),
				},
				Env: []string{"PGPASSWORD=" + server.Password},
			})
		require.Empty(t, results[0].Err)
		return results[1]
	}
	result := psql(wire.Source, name)
	require.Empty(t, result.Err, result.Got)
	require.Contains(t, result.Got, "t|TLSv1.")
	result = psql(wire.Target, "other.example.test")
	require.NotEmpty(t, result.Err)
	require.Contains(t, result.Got, "does not match host name")
	result = psql(wire.Source, "127.0.0.2")
	require.NotEmpty(t, result.Err)
	require.Contains(t, result.Got, "does not match host name")
}
