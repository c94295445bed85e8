package plugin

import (
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account/postgres"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// postgresPluginName is what Vault and Terraform call a PostgreSQL connection.
const postgresPluginName = "postgresql-database-plugin"

func postgresProduct() *product {
	return &product{
		engine:       wire.EnginePostgres,
		title:        "PostgreSQL",
		pluginName:   postgresPluginName,
		keepsRecords: true,
		operations:   true,
		details: sqlDetails(map[string]detailKind{
			"password_authentication": detailString,
			detailSCRAMIterations:     detailNumber,
			"tls_certificate":         detailString,
			"private_key":             detailSecret,
		}),
		check:     checkPostgres,
		locate:    locatePostgres,
		redactURL: dialect.RedactPostgresDSN,
		open:      openPostgres,
		preset:    expandPostgres,
		// 53 bytes at most, so the server's limit never cuts the random part.
		usernames: usernameRule{limit: dialect.PostgresNameBytes, inBytes: true, display: 8, role: 8, random: 20},
	}
}

// checkPostgres refuses what the driver would misunderstand or we cannot do.
func checkPostgres(stored storedConnection) error {
	switch stored.detail("auth_type") {
	case "", "cert":
	default:
		return invalidField("auth_type", "%q is not supported; leave it empty or take cert", stored.detail("auth_type"))
	}
	if err := stored.refuseFlags("use_private_ip", "use_psc"); err != nil {
		return err
	}
	if n := stored.number(detailSCRAMIterations); n < 0 || n > mostSCRAMIterations {
		return invalidField(detailSCRAMIterations, "is not between 1 and %d", mostSCRAMIterations)
	}
	switch postgres.PasswordAuthentication(stored.detail("password_authentication")) {
	case "", postgres.SCRAM, postgres.Plain:
	default:
		return invalidField("password_authentication", "is neither %s nor %s", postgres.SCRAM, postgres.Plain)
	}
	return nil
}

func locatePostgres(stored storedConnection) (location, error) {
	url := stored.detail("connection_url")
	if url == "" {
		return location{}, invalidField("connection_url", "is required")
	}
	dsn, err := dialect.ParsePostgresDSN(url)
	if err != nil {
		return location{}, invalidField("connection_url", "%s", err)
	}
	database := dsn.Database
	if database == "" {
		database = stored.detail("username") // as libpq does
	}
	return location{Host: dsn.Host, Port: dsn.Port, Database: database, SSLMode: dsn.SSLMode, HasPassword: dsn.HasPassword}, nil
}

func openPostgres(stored storedConnection) (account.Driver, error) {
	lifetime, err := stored.duration("max_connection_lifetime")
	if err != nil {
		return nil, err
	}
	return postgres.New(postgres.Config{
		URL:                    stored.detail("connection_url"),
		Username:               stored.detail("username"),
		Password:               stored.secret("password"),
		RawLogin:               stored.flag("disable_escaping"),
		MaxSessions:            stored.maxSessions(),
		MaxLifetime:            lifetime,
		NoIdle:                 stored.number("max_idle_connections") < 0,
		CA:                     stored.detail("tls_ca"),
		Certificate:            stored.detail("tls_certificate"),
		PrivateKey:             stored.secret("private_key"),
		PasswordAuthentication: postgres.PasswordAuthentication(stored.detail("password_authentication")),
	})
}
