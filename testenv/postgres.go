package testenv

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed postgres.sh
var postgresScript string

// PostgresOptions says what kind of PostgreSQL server to start. The zero value is
// a server on 127.0.0.1 without TLS that does not sync to disk.
type PostgresOptions struct {
	// Suite takes the server of this Debian suite, whatever the environment says.
	Suite string
	// Listen is the address to listen on; the default is 127.0.0.1.
	Listen string
	// ServerName turns TLS on, with a certificate for this name and the address
	// listened on, signed by an authority of its own (CAFile).
	ServerName string
	// RequireTLS refuses connections over TCP without TLS. It needs ServerName.
	RequireTLS bool
	// ClientCA is the authority whose client certificates the server takes, PEM. It
	// needs ServerName.
	ClientCA []byte
	// HBA is lines for pg_hba.conf that stand before the server's own.
	HBA []string
	// Conf is further lines for postgresql.conf, such as "max_connections = 20".
	Conf []string
	// HBAOnly leaves the server's own lines out.
	HBAOnly bool
	// TmpfsMiB puts the data directory, but not WAL, in memory, with this many
	// MiB; such a server forgets its data, and its identity, at Stop and Kill. A
	// fresh one takes about 24 MiB, each further database 8. Tests of a full disk
	// use it.
	TmpfsMiB int
	// Weight gives the server the processor time of so many programs when others are
	// busy too; by default all containers share that of one. Tests that measure time
	// use it.
	Weight int
	// Durable keeps fsync, synchronous_commit and full_page_writes on.
	Durable bool
}

// PostgresServer is a running PostgreSQL server.
type PostgresServer struct {
	*server

	// User and Password are the superuser's.
	User, Password string
	// ServerName is the name its certificate is for, "" without TLS.
	ServerName string
	// CAFile holds the authority of its certificate, PEM; "" without TLS.
	CAFile string

	ca []byte
}

// Postgres starts a PostgreSQL server in a container and waits until it takes
// connections. It is removed, with its data, when the test ends.
func Postgres(t TB, opts PostgresOptions) *PostgresServer {
	t.Helper()
	if opts.RequireTLS && opts.ServerName == "" {
		t.Fatalf("testenv: RequireTLS needs a ServerName")
	}
	listen := opts.Listen
	if listen == "" {
		listen = "127.0.0.1"
	}
	p := &PostgresServer{User: "postgres", Password: rand.Text(), ServerName: opts.ServerName}
	var certificate Certificate
	if opts.ServerName != "" {
		var err error
		if certificate, err = NewCertificate(opts.ServerName, listen); err != nil {
			t.Fatalf("start postgres: %v", err)
		}
		p.ca = certificate.CA
		p.CAFile = filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(p.CAFile, p.ca, 0o644); err != nil {
			t.Fatalf("start postgres: %v", err)
		}
	}
	p.server = startServer(t, serverSpec{
		part:   PartPostgres,
		suite:  opts.Suite,
		listen: listen,
		script: postgresScript,
		files: func(port int) map[string][]byte {
			files := map[string][]byte{
				"password":        []byte(p.Password + "\n"),
				"postgresql.conf": []byte(postgresConf(opts, listen, port)),
				"pg_hba.conf":     []byte(postgresHBA(opts)),
			}
			if opts.ServerName != "" {
				files["server.crt"], files["server.key"] = certificate.Cert, certificate.Key
			}
			if opts.ClientCA != nil {
				files["client-ca.crt"] = opts.ClientCA
			}
			if opts.TmpfsMiB > 0 {
				files["wal-elsewhere"] = nil
			}
			return files
		},
		env:        func(port int) []string { return []string{"PGPORT=" + strconv.Itoa(port), "PGUSER=postgres"} },
		data:       "/var/lib/dbops",
		tmpfs:      int64(opts.TmpfsMiB) << 20,
		weight:     opts.Weight,
		stopSignal: "SIGINT", // fast shutdown: does not wait for clients
		ready:      p.ready,
	})
	return p
}

func postgresConf(opts PostgresOptions, listen string, port int) string {
	lines := []string{
		"listen_addresses = '" + listen + "'",
		"port = " + strconv.Itoa(port),
		"unix_socket_directories = '/var/run/postgresql'",
		"hba_file = '/dbops/pg_hba.conf'",
		"password_encryption = 'scram-sha-256'",
		"log_destination = 'stderr'",
		"logging_collector = off",
		"log_timezone = 'UTC'",
	}
	if !opts.Durable {
		lines = append(lines, "fsync = off", "synchronous_commit = off", "full_page_writes = off")
	}
	if opts.ServerName != "" {
		lines = append(lines, "ssl = on", "ssl_cert_file = '/dbops/server.crt'", "ssl_key_file = '/dbops/server.key'")
	}
	if opts.ClientCA != nil {
		lines = append(lines, "ssl_ca_file = '/dbops/client-ca.crt'")
	}
	lines = append(lines, opts.Conf...)
	return strings.Join(lines, "\n") + "\n"
}

func postgresHBA(opts PostgresOptions) string {
	if opts.HBAOnly {
		return strings.Join(opts.HBA, "\n") + "\n"
	}
	host := "host"
	if opts.RequireTLS {
		host = "hostssl"
	}
	// The socket exists in the container only.
	return strings.Join(append(opts.HBA, ""), "\n") +
		"local all all trust\n" +
		host + " all all all scram-sha-256\n" +
		host + " replication all all scram-sha-256\n"
}

// Address is host:port.
func (p *PostgresServer) Address() string { return p.Host + ":" + strconv.Itoa(p.Port) }

// DSN is a connection URL of the superuser for the database.
func (p *PostgresServer) DSN(database string) string {
	return p.DSNFor(p.User, p.Password, database)
}

// DSNFor is a connection URL for the database as the given user. With TLS it says
// sslmode=verify-ca, for a test's resolver does not know ServerName.
func (p *PostgresServer) DSNFor(user, password, database string) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password),
		Host: p.Address(), Path: "/" + database, RawQuery: p.parameters(),
	}).String()
}

// ConnectionURL is the template that Vault's connection_url takes: user name and
// password are left to be filled in.
func (p *PostgresServer) ConnectionURL(database string) string {
	return "postgresql://{{username}}:{{password}}@" + p.Address() + "/" + url.PathEscape(database) + "?" + p.parameters()
}

func (p *PostgresServer) parameters() string {
	if p.CAFile == "" {
		return "sslmode=disable"
	}
	return url.Values{"sslmode": {"verify-ca"}, "sslrootcert": {p.CAFile}}.Encode()
}

// ConnConfig is the superuser's configuration for the database. With TLS it
// verifies ServerName although it dials the address.
func (p *PostgresServer) ConnConfig(database string) *pgx.ConnConfig {
	p.t.Helper()
	config, err := p.connConfig(database)
	if err != nil {
		p.t.Fatalf("configure connection to postgres: %v", err)
	}
	return config
}

func (p *PostgresServer) connConfig(database string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%d sslmode=disable", p.Host, p.Port))
	if err != nil {
		return nil, err
	}
	config.User, config.Password, config.Database = p.User, p.Password, database
	config.ConnectTimeout = 10 * time.Second
	if p.ca != nil {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(p.ca)
		config.TLSConfig = &tls.Config{RootCAs: pool, ServerName: p.ServerName, MinVersion: tls.VersionTLS12}
	}
	return config, nil
}

// ready is what startServer waits for.
func (p *PostgresServer) ready(ctx context.Context, s *server) error {
	p.server = s
	config, err := p.connConfig("postgres")
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// Connect opens a session of the superuser. It is closed when the test ends.
func (p *PostgresServer) Connect(database string) *pgx.Conn {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, p.ConnConfig(database))
	if err != nil {
		p.t.Fatalf("connect to postgres: %v", err)
	}
	p.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		// The server may have been stopped by the test.
		_ = conn.Close(ctx)
	})
	return conn
}

// Exec runs statements in the database, each string as one simple query: several
// statements in one string form one transaction.
func (p *PostgresServer) Exec(database string, sql ...string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, p.ConnConfig(database))
	if err != nil {
		p.t.Fatalf("connect to postgres: %v", err)
	}
	defer conn.Close(ctx)
	for _, statement := range sql {
		if err := conn.PgConn().Exec(ctx, statement).Close(); err != nil {
			p.t.Fatalf("run SQL in %s: %v\n%s", database, err, statement)
		}
	}
}

// Value runs a query of one row and column and returns it as text; NULL is "".
func (p *PostgresServer) Value(database, sql string, args ...any) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	config := p.ConnConfig(database)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // results as text
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		p.t.Fatalf("connect to postgres: %v", err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, sql, append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)...)
	if err != nil {
		p.t.Fatalf("query %s: %v\n%s", database, err, sql)
	}
	value, found := "", rows.Next()
	if found {
		value = string(rows.RawValues()[0])
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		p.t.Fatalf("query %s: %v\n%s", database, err, sql)
	}
	if !found {
		p.t.Fatalf("query %s: no row\n%s", database, sql)
	}
	return value
}

// Major is the server's major version, such as 15.
func (p *PostgresServer) Major() int {
	p.t.Helper()
	number, err := strconv.Atoi(p.Value("postgres", "SHOW server_version_num"))
	if err != nil {
		p.t.Fatalf("read the version of postgres: %v", err)
	}
	return number / 10000
}

// CreateDatabase makes an empty database.
func (p *PostgresServer) CreateDatabase(name string) {
	p.t.Helper()
	p.Exec("postgres", "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
}

// Start starts a stopped or killed server again, on the same port.
func (p *PostgresServer) Start() {
	p.t.Helper()
	p.start(p.ready)
}

// Run runs a program in the server's container as the superuser, such as pgbench
// or psql, and returns what it printed. A status other than 0 is fatal.
func (p *PostgresServer) Run(argv ...string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	out, err := p.run(ctx, "postgres", argv...)
	if err != nil {
		p.t.Fatalf("%v", err)
	}
	return out
}
