package testenv

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

//go:embed redis.sh
var redisScript string

// ValkeyVariable names the environment variable that makes [Redis] start Valkey: its
// value is valkey.
const ValkeyVariable = "DBOPS_REDIS_SERVER"

// RedisOptions says what kind of Redis server to start.
type RedisOptions struct {
	// Conf is further lines for redis.conf, such as "maxclients 20".
	Conf []string
	// Users is where the server keeps its users over a restart.
	Users RedisUsers
	// TLS takes connections with TLS only. The certificate is for localhost and
	// the server's address.
	TLS bool
	// ClientCertificates refuses connections without a certificate of the same
	// authority. It needs TLS.
	ClientCertificates bool
}

// RedisUsers is where a server keeps its users.
type RedisUsers int

// The places. By default the server cannot write its configuration file.
const (
	RedisUsersInMemory RedisUsers = iota
	RedisUsersInACLFile
	RedisUsersInConf
)

// RedisServer is a running Redis server, or a Valkey server; see [ValkeyVariable].
type RedisServer struct {
	*server

	// Valkey says that it is one of Valkey.
	Valkey bool

	// User and Password are those of the user who may do everything.
	User, Password string
	// Certificate is the server's, with its authority; empty without TLS.
	Certificate Certificate
}

// Redis starts a Redis server, or Valkey as [ValkeyVariable] says, in a container, on
// loopback, and waits until it takes connections. It is removed, with its data, when the test ends.
func Redis(t TB, opts RedisOptions) *RedisServer {
	t.Helper()
	part := variant(t, ValkeyVariable, PartRedis, PartValkey)
	r := &RedisServer{User: "default", Password: rand.Text(), Valkey: part == PartValkey}
	if opts.TLS {
		var err error
		if r.Certificate, err = NewCertificate("localhost", "127.0.0.1"); err != nil {
			t.Fatalf("start redis: %v", err)
		}
	}
	r.server = startServer(t, serverSpec{
		part:   part,
		script: redisScript,
		files:  func(port int) map[string][]byte { return r.files(opts, port) },
		data:   "/var/lib/dbops",
		ready:  r.ready,
	})
	return r
}

// files are what the server starts from; see redis.sh.
func (r *RedisServer) files(opts RedisOptions, port int) map[string][]byte {
	conf := []string{
		"bind 127.0.0.1", "requirepass " + r.Password,
		"dir /var/lib/dbops/data", "appendonly yes", "daemonize no", `logfile ""`,
	}
	files := make(map[string][]byte)
	if opts.TLS {
		clients := "no"
		if opts.ClientCertificates {
			clients = "yes"
		}
		conf = append(conf, "port 0", "tls-port "+strconv.Itoa(port), "tls-auth-clients "+clients,
			"tls-ca-cert-file /dbops/ca.pem", "tls-cert-file /dbops/cert.pem", "tls-key-file /dbops/key.pem")
		files["ca.pem"], files["cert.pem"], files["key.pem"] = r.Certificate.CA, r.Certificate.Cert, r.Certificate.Key
	} else {
		conf = append(conf, "port "+strconv.Itoa(port))
	}
	if r.Valkey {
		files["valkey"] = nil
	}
	switch opts.Users {
	case RedisUsersInACLFile:
		conf = append(conf, "aclfile /var/lib/dbops/data/users.acl")
		files["users.acl"] = []byte("user default on >" + r.Password + " ~* &* +@all\n")
	case RedisUsersInConf:
		files["writable"] = nil
	case RedisUsersInMemory:
	}
	files["redis.conf"] = []byte(strings.Join(append(conf, opts.Conf...), "\n") + "\n")
	return files
}

func (r *RedisServer) ready(ctx context.Context, s *server) error {
	r.server = s
	answer, err := r.command(ctx, "PING")
	if err == nil && answer != "PONG" {
		err = fmt.Errorf("answered %q", answer)
	}
	return err
}

// command sends one command in a session of its own and returns an answer of one
// value: a status, a number or a string. Enough for tests to set up and look, and
// it spares a client library.
func (r *RedisServer) command(ctx context.Context, args ...string) (string, error) {
	conn, err := r.dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	in := bufio.NewReader(conn)
	var answer string
	for _, command := range [][]string{{"AUTH", r.User, r.Password}, args} {
		var out strings.Builder
		fmt.Fprintf(&out, "*%d\r\n", len(command))
		for _, arg := range command {
			fmt.Fprintf(&out, "$%d\r\n%s\r\n", len(arg), arg)
		}
		if _, err := conn.Write([]byte(out.String())); err != nil {
			return "", err
		}
		if answer, err = readRedis(in); err != nil {
			return "", fmt.Errorf("%s: %w", command[0], err)
		}
	}
	return answer, nil
}

func (r *RedisServer) dial(ctx context.Context) (net.Conn, error) {
	if r.Certificate.CA == nil {
		return (&net.Dialer{}).DialContext(ctx, "tcp", r.Address())
	}
	pair, err := tls.X509KeyPair(r.Certificate.Cert, r.Certificate.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.Certificate.CA)
	return (&tls.Dialer{Config: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}).DialContext(ctx, "tcp", r.Address())
}

// readRedis reads an answer of one value; null is "".
func readRedis(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return "", errors.New("empty answer")
	}
	switch kind, rest := line[0], line[1:]; kind {
	case '+', ':':
		return rest, nil
	case '-':
		return "", errors.New(rest)
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "", err
		}
		var value strings.Builder
		for value.Len() < n+len("\r\n") {
			b, err := in.ReadByte()
			if err != nil {
				return "", err
			}
			value.WriteByte(b)
		}
		return value.String()[:n], nil
	default:
		return "", fmt.Errorf("answer of kind %q is not read here", kind)
	}
}

// Address is host:port.
func (r *RedisServer) Address() string { return r.Host + ":" + strconv.Itoa(r.Port) }

// Command runs one command that answers with one value and returns that; null is "".
func (r *RedisServer) Command(args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answer, err := r.command(ctx, args...)
	if err != nil {
		r.t.Fatalf("redis: %v", err)
	}
	return answer
}

// Start starts a stopped or killed server again, on the same port.
func (r *RedisServer) Start() {
	r.t.Helper()
	r.start(r.ready)
}
