package posture

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// MySQLFacts are what was seen on a MySQL or MariaDB server.
type MySQLFacts struct {
	Accounts []MySQLAccount
	// Variables by name, in lower case; one the server does not have is missing.
	Variables map[string]string
	// NoCertificate says that the server has none loaded, and so no TLS.
	NoCertificate bool
	// TestDatabase says that there is a database called test.
	TestDatabase bool
	// Own is the engine's own account; OwnRights are its rights, as in
	// [LeastRights].
	OwnUser, OwnHost string
	OwnRights        []string
}

// MySQLAccount is one account, without its password.
type MySQLAccount struct {
	User, Host string
	Plugin     string
	// Empty says that it logs in without a password.
	Empty bool
	// RequiresTLS says that it cannot log in without.
	RequiresTLS bool
	Locked      bool
	Super       bool
}

// String returns 'user'@'host'.
func (a MySQLAccount) String() string { return fmt.Sprintf("'%s'@'%s'", a.User, a.Host) }

// local reports whether it logs in on the server's host only.
func (a MySQLAccount) local() bool {
	return a.Host == "localhost" || a.Host == "127.0.0.1" || a.Host == "::1"
}

// The variables that are looked at.
const (
	MySQLSecureTransport = "require_secure_transport"
	MySQLLocalInfile     = "local_infile"
	MySQLSecureFilePriv  = "secure_file_priv"
	MySQLTLSVersion      = "tls_version"
	MySQLHaveSSL         = "have_ssl"
)

// MySQLVariables lists them.
func MySQLVariables() []string {
	return []string{MySQLSecureTransport, MySQLLocalInfile, MySQLSecureFilePriv, MySQLTLSVersion, MySQLHaveSSL}
}

func mysqlChecks() []Check {
	return []Check{
		{"mysql_empty_password", wire.RiskCritical, "accounts log in without a password", "ALTER USER … IDENTIFIED BY …, or DROP USER", 0},
		{"mysql_anonymous", wire.RiskHigh, "there are accounts without a name, which take whoever comes", "DROP USER ''@…", 0},
		{"mysql_superusers", wire.RiskHigh, "accounts that log in from elsewhere may do everything (SUPER)", "REVOKE SUPER ON *.*, and grant what is needed", 0},
		{"mysql_old_password", wire.RiskHigh, "accounts use the password hash of before MySQL 4.1", "ALTER USER … IDENTIFIED BY … with a current plugin", 0},
		{"mysql_no_require_ssl", wire.RiskHigh, "accounts may log in over the network without TLS", "ALTER USER … REQUIRE SSL, or require_secure_transport=ON", 0},
		{"mysql_ssl_off", wire.RiskHigh, "the server does not speak TLS", "ssl_cert and ssl_key", 0},
		{"mysql_secure_transport", wire.RiskMedium, "the server takes sessions over the network without TLS", "require_secure_transport=ON", 0},
		{"mysql_any_host", wire.RiskMedium, "accounts log in from every host", "RENAME USER … TO …@'<network>'", 0},
		{"mysql_native_password", wire.RiskMedium, "accounts use a password hash made of SHA-1 without salt", "caching_sha2_password on MySQL; on MariaDB ed25519 (INSTALL SONAME 'auth_ed25519')", 0},
		{"mysql_tls_old", wire.RiskMedium, "the server takes TLS older than 1.2", "tls_version=TLSv1.2,TLSv1.3", 0},
		{"mysql_local_infile", wire.RiskMedium, "the server asks clients for their files (LOAD DATA LOCAL)", "local_infile=OFF", 0},
		{"mysql_secure_file_priv", wire.RiskLow, "the server reads and writes files anywhere for whoever has FILE", "secure_file_priv=<directory>", 0},
		{"mysql_test_database", wire.RiskLow, "the database test is there, which everybody may write to on older servers", "DROP DATABASE test", 0},
	}
}

// systemAccounts belong to the server; they are locked or reach only the host.
func systemAccount(a MySQLAccount) bool {
	switch a.User {
	case "mariadb.sys", "mysql.sys", "mysql.session", "mysql.infoschema":
		return a.Host == "localhost"
	}
	return false
}

func (f *MySQLFacts) judge(r *report, ours string) {
	variable := func(name string) string { return strings.ToUpper(f.Variables[name]) }
	has := func(name string) bool { _, known := f.Variables[name]; return known }
	forced := variable(MySQLSecureTransport) == "ON"

	found := map[string][]string{}
	note := func(check string, a MySQLAccount) { found[check] = append(found[check], a.String()) }
	for _, a := range f.Accounts {
		if a.Locked || systemAccount(a) {
			continue
		}
		if a.Empty {
			note("mysql_empty_password", a)
		}
		if a.User == "" {
			note("mysql_anonymous", a)
		}
		if isOurs(a.User, ours) {
			continue
		}
		own := a.User == f.OwnUser && a.Host == f.OwnHost
		switch {
		case a.Plugin == "mysql_old_password":
			note("mysql_old_password", a)
		case a.Plugin == "mysql_native_password" && !a.Empty && !(a.local() && a.User == "root"):
			note("mysql_native_password", a)
		}
		if a.local() {
			continue
		}
		if strings.HasPrefix(a.Host, "%") {
			note("mysql_any_host", a)
		}
		if !forced && !a.RequiresTLS {
			note("mysql_no_require_ssl", a)
		}
		if a.Super && !own {
			note("mysql_superusers", a)
		}
	}
	for _, check := range mysqlChecks() {
		r.addNames(check.ID, "accounts", found[check.ID])
	}

	if slices.Contains([]string{"NO", "DISABLED"}, variable(MySQLHaveSSL)) {
		r.add("mysql_ssl_off", "have_ssl is %s", variable(MySQLHaveSSL))
	} else if f.NoCertificate {
		r.add("mysql_ssl_off", "no certificate is loaded")
	}
	if has(MySQLSecureTransport) && !forced {
		r.add("mysql_secure_transport", "require_secure_transport is OFF")
	}
	if variable(MySQLLocalInfile) == "ON" {
		r.add("mysql_local_infile", "local_infile is ON")
	}
	if has(MySQLSecureFilePriv) && f.Variables[MySQLSecureFilePriv] == "" {
		r.add("mysql_secure_file_priv", "secure_file_priv is empty")
	}
	for version := range strings.SplitSeq(f.Variables[MySQLTLSVersion], ",") {
		if v := strings.TrimSpace(version); v == "TLSv1.0" || v == "TLSv1" || v == "TLSv1.1" {
			r.add("mysql_tls_old", "tls_version is %s", f.Variables[MySQLTLSVersion])
			break
		}
	}
	if f.TestDatabase {
		r.add("mysql_test_database", "the database test exists")
	}
	r.addNames(checkRootRights, "the account has", excess(wire.EngineMySQL, f.OwnRights))
}
