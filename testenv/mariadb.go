package testenv

import (
	"context"
	"crypto/rand"
	_ "embed"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed mariadb.sh
var mariadbScript string

// MySQLVariable names the environment variable that makes [MariaDB] start MySQL: its
// value is mysql.
const MySQLVariable = "DBOPS_MARIADB_SERVER"

// ServesMySQL reports whether [MariaDB] starts MySQL.
func ServesMySQL() bool { return os.Getenv(MySQLVariable) == string(PartMySQL) }

// MariaDBOptions says what kind of MariaDB server to start.
type MariaDBOptions struct {
	// Conf is further lines for the section [mysqld], such as "max_connections=20".
	Conf []string
	// ServerName turns TLS on, with a certificate for this name and the address
	// listened on, signed by an authority of its own. Without it there is no TLS.
	ServerName string
	// ClientCA is a further authority whose client certificates the server takes,
	// PEM. It needs ServerName.
	ClientCA []byte
}

// MariaDBServer is a running MariaDB server, or a MySQL server; see [MySQLVariable].
type MariaDBServer struct {
	*server

	// MySQL says that it is one of MySQL.
	MySQL bool

	// User and Password are the superuser's, from every address.
	User, Password string
	// Certificate is the server's, and its authority's; empty without TLS.
	Certificate Certificate
}

// MariaDB starts a MariaDB server, or MySQL as [MySQLVariable] says, in a container,
// on loopback, and waits until it takes connections. It is removed, with its data, when the test ends.
func MariaDB(t TB, opts MariaDBOptions) *MariaDBServer {
	t.Helper()
	part := variant(t, MySQLVariable, PartMariaDB, PartMySQL)
	m := &MariaDBServer{User: "root", Password: rand.Text(), MySQL: part == PartMySQL}
	if opts.ServerName != "" {
		var err error
		if m.Certificate, err = NewCertificate(opts.ServerName, "127.0.0.1"); err != nil {
			t.Fatalf("make certificate: %v", err)
		}
	}
	m.server = startServer(t, serverSpec{
		part:   part,
		script: mariadbScript,
		files: func(port int) map[string][]byte {
			// For clients in the container; it keeps the password out of argv.
			// Newer ones ask for TLS on the socket too.
			client := "[client]\nsocket=/run/mysqld/testenv.sock\nuser=root\npassword=" + m.Password + "\nloose-skip-ssl\n"
			server := []string{
				"[mysqld]", "bind-address=127.0.0.1", "port=" + strconv.Itoa(port),
				"socket=/run/mysqld/testenv.sock", "pid-file=/run/mysqld/testenv.pid",
				"log-bin=binlog", "server-id=1", "character-set-server=utf8mb4",
				// Nothing here outlives the test, so nothing is synced.
				"innodb_flush_log_at_trx_commit=0", "sync_binlog=0", "innodb_flush_method=nosync",
				"innodb_buffer_pool_size=64M",
			}
			if m.MySQL {
				// Its second protocol listens on a port of its own. What was committed
				// outlives a killed server, users too, as in MariaDB's own tables.
				server = append(server, "mysqlx=OFF", "innodb_flush_log_at_trx_commit=2")
			}
			// A random text of letters and digits needs no quoting.
			sql := "ALTER USER 'root'@'localhost' IDENTIFIED BY '" + m.Password + "';\n" +
				"CREATE USER 'root'@'%' IDENTIFIED BY '" + m.Password + "';\n" +
				"GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;\n"
			files := map[string][]byte{"client.cnf": []byte(client), "init.sql": []byte(sql)}
			switch {
			case opts.ServerName != "":
				files["ca.crt"], files["server.crt"], files["server.key"] = slices.Concat(m.Certificate.CA, opts.ClientCA), m.Certificate.Cert, m.Certificate.Key
				server = append(server, "ssl-ca=/dbops/ca.crt", "ssl-cert=/dbops/server.crt", "ssl-key=/dbops/server.key")
			case m.MySQL:
				// Newer servers make a certificate of their own; these words turn it off.
				server = append(server, "tls_version=")
			default:
				server = append(server, "skip-ssl")
			}
			files["server.cnf"] = []byte(strings.Join(append(server, opts.Conf...), "\n") + "\n")
			return files
		},
		data:  "/var/lib/dbops",
		ready: m.ready,
	})
	return m
}

func (m *MariaDBServer) ready(ctx context.Context, s *server) error {
	m.server = s
	_, err := m.sql(ctx, "", "SELECT 1")
	return err
}

// sql runs statements through the client in the container and returns its rows,
// columns separated by tabs.
func (m *MariaDBServer) sql(ctx context.Context, database, statements string) (string, error) {
	client := "mariadb"
	if m.MySQL {
		client = "mysql"
	}
	argv := []string{client, "--defaults-file=/dbops/client.cnf", "--batch", "--skip-column-names", "--execute", statements}
	if database != "" {
		argv = append(argv, database)
	}
	return m.run(ctx, "0:0", argv...)
}

// Address is host:port.
func (m *MariaDBServer) Address() string { return m.Host + ":" + strconv.Itoa(m.Port) }

// ConnectionURL is the template that Vault's connection_url takes: user name and
// password are left to be filled in.
func (m *MariaDBServer) ConnectionURL(database string) string {
	return "{{username}}:{{password}}@tcp(" + m.Address() + ")/" + database
}

// ConnectionAdmin is what the server calls the right to end the sessions of others.
func (m *MariaDBServer) ConnectionAdmin() string {
	if m.MySQL {
		return "CONNECTION_ADMIN"
	}
	return "CONNECTION ADMIN"
}

// Exec runs statements in the database, "" for none, and returns the rows they
// answer with, columns separated by tabs.
func (m *MariaDBServer) Exec(database, statements string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	out, err := m.sql(ctx, database, statements)
	if err != nil {
		m.t.Fatalf("run SQL: %v\n%s", err, statements)
	}
	return strings.TrimRight(out, "\n")
}

// Start starts a stopped or killed server again, on the same port.
func (m *MariaDBServer) Start() {
	m.t.Helper()
	m.start(m.ready)
}
