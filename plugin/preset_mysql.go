package plugin

import (
	"fmt"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
)

// mysqlRights are what a preset's users may do in the connection's database. A
// grant on a database covers tables made later. Tables have no owner; what has
// one, as views and routines that run with the rights of who made them, would stop
// working with its maker, so owner makes none.
func mysqlRights(p preset) string {
	switch p {
	case presetReadwrite:
		return "SELECT, INSERT, UPDATE, DELETE"
	case presetOwner:
		return "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES, LOCK TABLES, CREATE TEMPORARY TABLES"
	default:
		return "SELECT"
	}
}

// expandMySQL works out a preset. Nothing has to be prepared.
func expandMySQL(c *connection, r *role) (expansion, error) {
	database := c.location.Database
	switch {
	case database == "":
		return expansion{}, presetError(c, "its connection_url names no database")
	case strings.Contains(database, "{{"):
		return expansion{}, presetError(c, "the database's name holds {{, which stands for something in statements")
	}
	// In a grant these two stand for other names too.
	pattern := strings.NewReplacer("_", `\_`, "%", `\%`).Replace(database)
	ident, err := dialect.MySQLIdent(pattern)
	if err != nil {
		return expansion{}, presetError(c, "%s", err)
	}
	const user = `'{{name}}'@'{{host}}'`
	create := "CREATE USER " + user
	switch r.CredentialType {
	case credentialCertificate:
		create += " REQUIRE SUBJECT '/CN={{common_name}}'"
	case credentialRSA:
		return expansion{}, presetError(c, "MySQL knows no users with a key")
	default:
		create += " IDENTIFIED BY '{{password}}'"
		if c.location.SSLMode != "disable" {
			create += " REQUIRE SSL" // as the connection itself
		}
	}
	return expansion{
		Creation: []string{
			fmt.Sprintf("%s WITH MAX_USER_CONNECTIONS %d", create, presetConnections),
			"GRANT " + mysqlRights(r.Preset) + " ON " + ident + ".* TO " + user,
		},
		Revocation: []string{"ALTER USER IF EXISTS " + user + " ACCOUNT LOCK", "DROP USER IF EXISTS " + user},
	}, nil
}
