package posture

import (
	"slices"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Right is one that the engine's own login on a server may have.
type Right struct {
	// Shown is the right as README's table has it.
	Shown string
	For   string
	// names are what the server calls it, or them.
	names []string
}

// LeastRights are all the rights the engine's own login needs on a server, as in
// README's tables. Whatever it has beyond them is a finding.
func LeastRights(engine wire.EngineType) []Right {
	switch engine {
	case wire.EnginePostgres:
		return []Right{
			{"`LOGIN CREATEROLE`", "making and dropping logins", []string{"CREATEROLE"}},
			{"the capability roles, `WITH ADMIN OPTION`", "giving them to logins", nil},
			{"logins of static roles, `WITH ADMIN OPTION` (PostgreSQL 16)", "rotating logins that it did not make", nil},
			{"`pg_signal_backend`", "ending the sessions of logins that it did not make", []string{"pg_signal_backend"}},
			{"`USAGE` on `dbops_posture`, `EXECUTE` on its functions", "`posture`, see there", nil},
		}
	case wire.EngineMySQL:
		return []Right{
			{"`CREATE USER ON *.*`", "making, locking and dropping users", []string{"CREATE USER"}},
			{"what roles grant, `WITH GRANT OPTION`", "creation statements", []string{
				"SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "ALTER", "INDEX", "REFERENCES", "EXECUTE", "TRIGGER", "EVENT", "LOCK TABLES",
				"CREATE VIEW", "SHOW VIEW", "CREATE ROUTINE", "ALTER ROUTINE", "CREATE TEMPORARY TABLES", "DELETE HISTORY", "SHOW CREATE ROUTINE",
			}},
			{"`ROLE_ADMIN ON *.*` (MySQL)", "granting roles it has no `WITH ADMIN OPTION` on", []string{"ROLE_ADMIN"}},
			{
				"`PROCESS`, and `CONNECTION_ADMIN` (MySQL) or `CONNECTION ADMIN` (MariaDB), `ON *.*`",
				"ending a user's sessions, which outlive the user otherwise; on RDS `mysql.rds_kill` is used",
				[]string{"PROCESS", "CONNECTION_ADMIN", "CONNECTION ADMIN"},
			},
			{"`SELECT ON mysql.user`", "finding all hosts of a user, and users left over; without it only `user_host` (default `%`) is looked at; `posture`", nil},
			{"`SHOW DATABASES ON *.*`", "`posture`", []string{"SHOW DATABASES"}},
		}
	case wire.EngineRedis:
		return []Right{
			{"`+ping`", "seeing that the login works", []string{"+ping"}},
			{"`+info`", "which server it is", []string{"+info"}},
			{"`+acl|getuser` `+acl|setuser` `+acl|deluser` `+acl|users`", "making, finding and dropping users; `posture`", []string{"+acl|getuser", "+acl|setuser", "+acl|deluser", "+acl|users"}},
			{"`+acl|save` `+config|rewrite`", "keeping users over a restart", []string{"+acl|save", "+config|rewrite"}},
			{"`+config|get`", "where users are kept; `posture`", []string{"+config|get"}},
			{"`+acl` `+config`", "the same before Redis 7, which knows no subcommands", []string{"+acl", "+config"}},
		}
	default:
		return nil
	}
}

// excess lists the rights that are not in the table.
func excess(engine wire.EngineType, rights []string) []string {
	known := map[string]bool{"USAGE": true, "GRANT OPTION": true}
	for _, right := range LeastRights(engine) {
		for _, name := range right.names {
			known[strings.ToUpper(name)] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(rights), func(right string) bool { return known[strings.ToUpper(right)] })
}
