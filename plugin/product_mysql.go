package plugin

import (
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account/mysql"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// mysqlPluginName is what Vault and Terraform call a connection to MySQL or
// MariaDB.
const mysqlPluginName = "mysql-database-plugin"

// mysqlProducts are MySQL and MariaDB under the names of Vault's plugins. They
// differ in how long a user name may be only.
func mysqlProducts() []*product {
	// 32 characters, which every MySQL since 5.7.8 takes. MariaDB takes 80, for
	// those who write a username_template.
	usernames := usernameRule{limit: 80, role: 4, random: 12}
	// Servers before that take 16, too few for the mount's id.
	legacy := usernameRule{limit: 16, noPrefix: true, role: 4, random: 11}
	return []*product{
		mysqlProduct(mysqlPluginName, usernames),
		mysqlProduct("mysql-aurora-database-plugin", usernames),
		mysqlProduct("mysql-rds-database-plugin", usernames),
		mysqlProduct("mysql-legacy-database-plugin", legacy),
	}
}

func mysqlProduct(pluginName string, usernames usernameRule) *product {
	return &product{
		engine:     wire.EngineMySQL,
		title:      "MySQL",
		pluginName: pluginName,
		details: sqlDetails(map[string]detailKind{
			"user_host":           detailString,
			"tls_certificate_key": detailSecret,
			"tls_server_name":     detailString,
			"tls_skip_verify":     detailFlag,
		}),
		check:     checkMySQL,
		locate:    locateMySQL,
		redactURL: dialect.RedactMySQLDSN,
		open:      openMySQL,
		preset:    expandMySQL,
		usernames: usernames,
	}
}

// checkMySQL refuses what we cannot do.
func checkMySQL(stored storedConnection) error {
	if kind := stored.detail("auth_type"); kind != "" {
		return invalidField("auth_type", "%q is not supported; leave it empty", kind)
	}
	return stored.refuseFlags("use_private_ip", "use_psc")
}

func locateMySQL(stored storedConnection) (location, error) {
	url := stored.detail("connection_url")
	if url == "" {
		return location{}, invalidField("connection_url", "is required")
	}
	dsn, err := dialect.ParseMySQLDSN(url)
	if err != nil {
		return location{}, invalidField("connection_url", "%s", err)
	}
	found := location{Host: dsn.Host, Port: dsn.Port, Database: dsn.Database, SSLMode: dsn.SSLMode, HasPassword: dsn.HasPassword}
	switch {
	case stored.flag("tls_skip_verify"):
		found.SSLMode = "require"
	case stored.detail("tls_ca") != "" || stored.detail("tls_server_name") != "" || stored.Secrets["tls_certificate_key"] != "":
		found.SSLMode = "verify-full"
	}
	return found, nil
}

func openMySQL(stored storedConnection) (account.Driver, error) {
	lifetime, err := stored.duration("max_connection_lifetime")
	if err != nil {
		return nil, err
	}
	return mysql.New(mysql.Config{
		URL:            stored.detail("connection_url"),
		Username:       stored.detail("username"),
		Password:       stored.secret("password"),
		MaxSessions:    stored.maxSessions(),
		MaxLifetime:    lifetime,
		NoIdle:         stored.number("max_idle_connections") < 0,
		CA:             stored.detail("tls_ca"),
		CertificateKey: stored.secret("tls_certificate_key"),
		ServerName:     stored.detail("tls_server_name"),
		SkipVerify:     stored.flag("tls_skip_verify"),
		Host:           stored.detail("user_host"),
	})
}
