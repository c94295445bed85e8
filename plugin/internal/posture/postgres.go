package posture

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// PostgresFacts are what was seen on a PostgreSQL server.
type PostgresFacts struct {
	// Settings by name; one that may not be read is missing.
	Settings map[string]string
	// MD5Passwords and PlainPasswords name roles.
	MD5Passwords, PlainPasswords []string
	// HBA is pg_hba.conf, in its order.
	HBA []HBALine
	// PublicCreate and PublicUsage name schemas of the connection's database,
	// PublicTables tables in it, on which everybody has rights.
	PublicCreate, PublicUsage, PublicTables []string
	// PublicTemp and PublicConnect name databases of the server.
	PublicTemp, PublicConnect []string
	// Superusers name roles that log in, but for the one the server was made with
	// and the engine's own.
	Superusers []string
	// OwnRights are those of the engine's own login, as in [LeastRights].
	OwnRights []string
}

// HBALine is one line of pg_hba.conf.
type HBALine struct {
	Number    int
	Type      string // local, host, hostssl, hostnossl, …
	Databases []string
	Users     []string
	Address   string
	Netmask   string
	Method    string
}

// The settings that are looked at.
const (
	PostgresSSL               = "ssl"
	PostgresMinTLS            = "ssl_min_protocol_version"
	PostgresEncryption        = "password_encryption"
	PostgresLogConnections    = "log_connections"
	PostgresLogDisconnections = "log_disconnections"
)

// PostgresSettings lists them.
func PostgresSettings() []string {
	return []string{PostgresSSL, PostgresMinTLS, PostgresEncryption, PostgresLogConnections, PostgresLogDisconnections}
}

func postgresChecks() []Check {
	return []Check{
		{"postgres_hba_trust", wire.RiskCritical, "pg_hba.conf lets people in without a password", "replace trust by scram-sha-256, or peer on local lines, and reload", 0},
		{"postgres_password_plain", wire.RiskCritical, "passwords are stored as they are", "set each of these passwords anew under password_encryption = scram-sha-256", 0},
		{"postgres_password_md5", wire.RiskHigh, "passwords are stored as MD5, which whoever reads it can log in with", "set each of these passwords anew under password_encryption = scram-sha-256", 0},
		{"postgres_superusers", wire.RiskHigh, "there are more superusers who log in than the one the server was made with", "ALTER ROLE … NOSUPERUSER, and grant what is needed", 0},
		{"postgres_public_create", wire.RiskHigh, "everybody may create objects in a schema, which others then call", "REVOKE CREATE ON SCHEMA … FROM PUBLIC", 0},
		{"postgres_hba_password", wire.RiskHigh, "pg_hba.conf takes passwords in clear or as MD5, or believes what the client says of itself", "replace password, md5 and ident by scram-sha-256, and reload", 0},
		{"postgres_ssl_off", wire.RiskHigh, "the server does not speak TLS", "ssl = on with ssl_cert_file and ssl_key_file", 0},
		{"postgres_hba_plaintext", wire.RiskMedium, "pg_hba.conf lets sessions in over the network without TLS", "hostssl instead of host, or a line hostnossl all all all reject before", 0},
		{"postgres_hba_open", wire.RiskMedium, "pg_hba.conf lets every address in", "name the networks of those who need it", 0},
		{"postgres_tls_old", wire.RiskMedium, "the server takes TLS older than 1.2", "ssl_min_protocol_version = 'TLSv1.2'", 0},
		{"postgres_password_encryption", wire.RiskMedium, "new passwords are not stored as SCRAM", "password_encryption = scram-sha-256", 0},
		{"postgres_public_tables", wire.RiskMedium, "everybody has rights on tables", "REVOKE ALL ON TABLE … FROM PUBLIC", 0},
		{"postgres_log_connections", wire.RiskMedium, "who connects is not logged", "log_connections = on", 0},
		{"postgres_log_disconnections", wire.RiskLow, "who leaves is not logged", "log_disconnections = on", 0},
		{"postgres_public_usage", wire.RiskLow, "everybody sees into a schema", "REVOKE ALL ON SCHEMA … FROM PUBLIC", 0},
		{"postgres_public_temp", wire.RiskLow, "everybody may make temporary tables in a database", "REVOKE TEMPORARY ON DATABASE … FROM PUBLIC", 0},
		{"postgres_public_connect", wire.RiskLow, "everybody may connect to a database", "REVOKE CONNECT ON DATABASE … FROM PUBLIC, and grant it to those who need it", 0},
	}
}

func (f *PostgresFacts) judge(r *report, ours string) {
	f.judgeHBA(r)
	f.judgeSettings(r)
	foreign := func(names []string) []string {
		return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return isOurs(name, ours) })
	}
	r.addNames("postgres_password_plain", "passwords of", foreign(f.PlainPasswords))
	r.addNames("postgres_password_md5", "passwords of", foreign(f.MD5Passwords))
	r.addNames("postgres_superusers", "superusers", f.Superusers)
	r.addNames("postgres_public_create", "PUBLIC may create in", f.PublicCreate)
	r.addNames("postgres_public_usage", "PUBLIC has USAGE on", f.PublicUsage)
	r.addNames("postgres_public_tables", "PUBLIC has rights on", f.PublicTables)
	r.addNames("postgres_public_temp", "PUBLIC has TEMPORARY on", f.PublicTemp)
	r.addNames("postgres_public_connect", "PUBLIC has CONNECT on", f.PublicConnect)
	r.addNames(checkRootRights, "the login has", excess(wire.EnginePostgres, f.OwnRights))
}

func (f *PostgresFacts) judgeSettings(r *report) {
	is := func(name string, bad ...string) bool {
		value, known := f.Settings[name]
		return known && slices.Contains(bad, value)
	}
	if is(PostgresSSL, "off") {
		r.add("postgres_ssl_off", "ssl is off")
	} else if is(PostgresMinTLS, "", "TLSv1", "TLSv1.1") {
		r.add("postgres_tls_old", "ssl_min_protocol_version is %q", f.Settings[PostgresMinTLS])
	}
	if value, known := f.Settings[PostgresEncryption]; known && value != "scram-sha-256" {
		r.add("postgres_password_encryption", "password_encryption is %s", value)
	}
	// Newer servers take a list of what to log of a connection.
	if is(PostgresLogConnections, "off", "") {
		r.add("postgres_log_connections", "log_connections is off")
	}
	if is(PostgresLogDisconnections, "off") {
		r.add("postgres_log_disconnections", "log_disconnections is off")
	}
}

func (f *PostgresFacts) judgeHBA(r *report) {
	var trust, weak, open, plain []string
	// What an earlier line refuses, no later one lets in.
	var plainRefused hbaReach
	for _, line := range f.HBA {
		reach := line.reach()
		network := strings.HasPrefix(line.Type, "host")
		clear := line.Type == "host" || line.Type == "hostnossl"
		if line.Method == "reject" {
			if clear && slices.Contains(line.Databases, "all") && slices.Contains(line.Users, "all") {
				plainRefused.v4 = plainRefused.v4 || reach.v4
				plainRefused.v6 = plainRefused.v6 || reach.v6
			}
			continue
		}
		switch line.Method {
		case "trust":
			trust = append(trust, line.String())
		case "password", "md5", "ident":
			weak = append(weak, line.String())
		}
		if network && (reach.v4 || reach.v6) {
			open = append(open, line.String())
		}
		refused := plainRefused.v4 && (plainRefused.v6 || line.isV4())
		if clear && !line.onHost() && !refused {
			plain = append(plain, line.String())
		}
	}
	r.addNames("postgres_hba_trust", "pg_hba.conf", trust)
	r.addNames("postgres_hba_password", "pg_hba.conf", weak)
	r.addNames("postgres_hba_open", "pg_hba.conf", open)
	r.addNames("postgres_hba_plaintext", "pg_hba.conf", plain)
}

// hbaReach is whether a line speaks of every address.
type hbaReach struct{ v4, v6 bool }

func (l HBALine) reach() hbaReach {
	switch {
	case l.Address == "all":
		return hbaReach{v4: true, v6: true}
	case l.Netmask == "0.0.0.0", strings.HasSuffix(l.Address, ".0/0"):
		return hbaReach{v4: true}
	case l.Netmask == "::", l.Address == "::/0":
		return hbaReach{v6: true}
	default:
		return hbaReach{}
	}
}

func (l HBALine) isV4() bool { return strings.Contains(l.Address, ".") }

// onHost reports whether the line lets in only what runs on the server's host.
func (l HBALine) onHost() bool {
	switch {
	case l.Address == "localhost", l.Address == "samehost", l.Address == "::1":
		return true
	case strings.HasPrefix(l.Address, "127."):
		return l.Netmask == "" || strings.HasPrefix(l.Netmask, "255.")
	default:
		return false
	}
}

// String is the line as in the file, roughly.
func (l HBALine) String() string {
	text := fmt.Sprintf("line %d: %s %s %s", l.Number, l.Type, strings.Join(l.Databases, ","), strings.Join(l.Users, ","))
	if l.Address != "" {
		text += " " + l.Address
	}
	if l.Netmask != "" {
		text += " " + l.Netmask
	}
	return text + " " + l.Method
}
