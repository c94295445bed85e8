package plugin

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account/postgres"
)

// A preset on PostgreSQL is a capability role per preset and database, without
// login: dbops_readonly_shop. It holds the rights; logins are its members and get
// none of their own, so making one changes no table's ACL, and two made at once
// never touch the same row of the catalog.
//
// Rights are granted in the connection's database only. pg_read_all_data would be
// simpler, but it opens every database of the server. Tables made later are
// reached by default privileges: of the owner preset's role, of the database's
// owner, and of everybody who owns something in the database at the time of the
// preparation.

// capabilityRole names the role; a name the server would cut keeps what tells it
// from others.
func capabilityRole(p preset, database string) string {
	name := fmt.Sprintf("dbops_%s_%s", p, database)
	if len(name) <= dialect.PostgresNameBytes {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	suffix := "_" + hex.EncodeToString(sum[:8])
	return strings.ToValidUTF8(name[:dialect.PostgresNameBytes-len(suffix)], "") + suffix
}

// postgresRights are what a capability role is granted.
type postgresRights struct{ database, schemas, tables, sequences string }

func postgresRightsOf(p preset) postgresRights {
	switch p {
	case presetReadwrite:
		return postgresRights{database: "CONNECT", schemas: "USAGE", tables: "SELECT, INSERT, UPDATE, DELETE", sequences: "USAGE, SELECT"}
	case presetOwner:
		// Not TRIGGER: a trigger on somebody's table runs with his rights.
		return postgresRights{
			database: "CONNECT, CREATE, TEMPORARY", schemas: "USAGE, CREATE",
			tables: "SELECT, INSERT, UPDATE, DELETE, REFERENCES", sequences: "USAGE, SELECT, UPDATE",
		}
	default:
		return postgresRights{database: "CONNECT", schemas: "USAGE", tables: "SELECT", sequences: "SELECT"}
	}
}

// expandPostgres works out a preset.
func expandPostgres(c *connection, r *role) (expansion, error) {
	database, vault := c.location.Database, c.detail("username")
	switch {
	case database == "":
		return expansion{}, presetError(c, "its connection_url names no database")
	case vault == "":
		return expansion{}, presetError(c, "it has no username")
	case strings.Contains(database, "{{"):
		return expansion{}, presetError(c, "the database's name holds {{, which stands for something in statements")
	}
	q, err := newPostgresQuoter(r.Preset, database, vault)
	if err != nil {
		return expansion{}, presetError(c, "%s", err)
	}
	create := `CREATE ROLE "{{name}}" LOGIN `
	switch r.CredentialType {
	case credentialPassword:
		create += `PASSWORD '{{password}}' `
	case credentialRSA:
		return expansion{}, presetError(c, "PostgreSQL knows no logins with a key")
	}
	create += fmt.Sprintf(`VALID UNTIL '{{expiration}}' CONNECTION LIMIT %d IN ROLE %s`, presetConnections, q.role)
	creation := []string{create}
	if r.Preset == presetOwner {
		// What it makes belongs to the stable role from the start.
		creation = append(creation, `ALTER ROLE "{{name}}" SET role TO `+q.role)
	}
	return expansion{
		Creation: creation,
		Revocation: []string{
			`ALTER ROLE "{{name}}" NOLOGIN VALID UNTIL 'now'`,
			`SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE usename = '{{name}}'`,
			`REASSIGN OWNED BY "{{name}}" TO ` + q.role,
			`DROP OWNED BY "{{name}}"`,
			`DROP ROLE IF EXISTS "{{name}}"`,
		},
		Renew:       []string{postgres.DefaultRenewal},
		Preparation: q.preparation(),
	}, nil
}

// postgresQuoter writes the preparation of one capability role.
type postgresQuoter struct {
	preset preset
	db     string
	rights postgresRights
	// Quoted as identifiers, and as literals.
	role, database, vault          string
	roleText, vaultText, ownerText string
}

func newPostgresQuoter(p preset, database, vault string) (*postgresQuoter, error) {
	q := &postgresQuoter{preset: p, db: database, rights: postgresRightsOf(p)}
	name := capabilityRole(p, database)
	for _, quoted := range []struct {
		into  *string
		text  string
		quote func(string) (string, error)
	}{
		{&q.role, name, dialect.PostgresIdent},
		{&q.database, database, dialect.PostgresIdent},
		{&q.vault, vault, dialect.PostgresIdent},
		{&q.roleText, name, dialect.PostgresLiteral},
		{&q.vaultText, vault, dialect.PostgresLiteral},
		{&q.ownerText, capabilityRole(presetOwner, database), dialect.PostgresLiteral},
	} {
		var err error
		if *quoted.into, err = quoted.quote(quoted.text); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// block writes a DO statement whose quotes nothing in it can close.
func block(declare string, lines ...string) string {
	body := "\nBEGIN\n" + strings.Join(lines, "\n") + "\nEND "
	if declare != "" {
		body = "\nDECLARE " + declare + ";" + body
	}
	tag := "$dbops$"
	for n := 1; strings.Contains(body, tag); n++ {
		tag = fmt.Sprintf("$dbops%d$", n)
	}
	return "DO " + tag + body + tag
}

// publicRights asks whether PUBLIC has rights on schema public.
const publicRights = `SELECT FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) a` +
	` WHERE n.nspname = 'public' AND a.grantee = 0`

// userSchemas asks for the schemas that are not the server's own.
const userSchemas = `SELECT oid, nspname, nspowner FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'`

// preparation makes the capability role and grants it its rights.
func (q *postgresQuoter) preparation() account.Preparation {
	return account.Preparation{
		Statements: append([]string{
			block("", "  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = "+q.roleText+") THEN",
				"    CREATE ROLE "+q.role+" NOLOGIN;", "  END IF;"),
			// Vault's login makes members of it and hands over to it.
			block("", "  IF NOT pg_catalog.pg_has_role("+q.vaultText+", "+q.roleText+", 'MEMBER WITH ADMIN OPTION') THEN",
				"    GRANT "+q.role+" TO "+q.vault+" WITH ADMIN OPTION;", "  END IF;",
				"  IF NOT pg_catalog.pg_has_role("+q.vaultText+", "+q.roleText+", 'USAGE') THEN",
				"    GRANT "+q.role+" TO "+q.vault+";", "  END IF;"),
			q.closePublic(),
			"GRANT " + q.rights.database + " ON DATABASE " + q.database + " TO " + q.role,
			block("place text", "  FOR place IN SELECT nspname FROM ("+userSchemas+") s ORDER BY nspname LOOP",
				"    EXECUTE pg_catalog.format('GRANT "+q.rights.schemas+" ON SCHEMA %I TO %I', place, "+q.roleText+");",
				"    EXECUTE pg_catalog.format('GRANT "+q.rights.tables+" ON ALL TABLES IN SCHEMA %I TO %I', place, "+q.roleText+");",
				"    EXECUTE pg_catalog.format('GRANT "+q.rights.sequences+" ON ALL SEQUENCES IN SCHEMA %I TO %I', place, "+q.roleText+");",
				"  END LOOP;"),
			q.futureObjects(),
		}, q.futureReaders()...),
		Missing: q.missing(),
	}
}

// closePublic takes PUBLIC's rights on schema public away. Who owns or was granted
// something in it keeps its use, by name. So does the database's owner, who goes on
// making things in it too: before PostgreSQL 15 he could as one of PUBLIC only.
func (q *postgresQuoter) closePublic() string {
	return block("somebody text", "  IF EXISTS ("+publicRights+") THEN",
		"    FOR somebody IN SELECT DISTINCT r.rolname FROM pg_catalog.pg_class c",
		"        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'",
		"        CROSS JOIN LATERAL (SELECT c.relowner AS oid UNION SELECT a.grantee FROM pg_catalog.aclexplode(c.relacl) a) u",
		"        JOIN pg_catalog.pg_roles r ON r.oid = u.oid AND r.oid <> n.nspowner LOOP",
		"      EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA public TO %I', somebody);",
		"    END LOOP;",
		"    FOR somebody IN SELECT r.rolname FROM pg_catalog.pg_database d",
		"        JOIN pg_catalog.pg_roles r ON r.oid = d.datdba",
		"        JOIN pg_catalog.pg_namespace n ON n.nspname = 'public' AND n.nspowner <> r.oid",
		"        JOIN pg_catalog.pg_roles o ON o.oid = n.nspowner AND o.rolname <> 'pg_database_owner'",
		"        WHERE d.datname = pg_catalog.current_database() AND pg_catalog.has_schema_privilege(r.oid, n.oid, 'CREATE') LOOP",
		"      EXECUTE pg_catalog.format('GRANT USAGE, CREATE ON SCHEMA public TO %I', somebody);",
		"    END LOOP;",
		"    REVOKE ALL ON SCHEMA public FROM PUBLIC;",
		"    IF EXISTS ("+publicRights+") THEN",
		"      RAISE insufficient_privilege USING MESSAGE = 'PUBLIC keeps its rights on schema public';",
		"    END IF;",
		"  END IF;")
}

// futureObjects reaches what is made later by those who own something already.
func (q *postgresQuoter) futureObjects() string {
	return block("maker text", "  FOR maker IN SELECT r.rolname FROM pg_catalog.pg_roles r",
		"      WHERE pg_catalog.pg_has_role(r.oid, 'USAGE') AND r.rolname !~ '^pg_' AND r.rolname <> "+q.roleText,
		"        AND (r.rolname = "+q.ownerText,
		"          OR r.oid IN (SELECT datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
		"          OR r.oid IN (SELECT nspowner FROM ("+userSchemas+") s)",
		"          OR r.oid IN (SELECT c.relowner FROM pg_catalog.pg_class c JOIN ("+userSchemas+") s ON s.oid = c.relnamespace)) LOOP",
		"    EXECUTE pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I GRANT "+q.rights.tables+" ON TABLES TO %I', maker, "+q.roleText+");",
		"    EXECUTE pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I GRANT "+q.rights.sequences+" ON SEQUENCES TO %I', maker, "+q.roleText+");",
		"    EXECUTE pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I GRANT "+q.rights.schemas+" ON SCHEMAS TO %I', maker, "+q.roleText+");",
		"  END LOOP;")
}

// futureReaders lets the other presets, if they were prepared before, reach what
// the owner preset's logins make.
func (q *postgresQuoter) futureReaders() []string {
	if q.preset != presetOwner {
		return nil
	}
	var statements []string
	for _, p := range []preset{presetReadonly, presetReadwrite} {
		reader, err := newPostgresQuoter(p, q.db, "")
		if err != nil {
			continue // the same texts were quoted before
		}
		rights := reader.rights
		statements = append(statements, block("",
			"  IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = "+reader.roleText+") THEN",
			"    ALTER DEFAULT PRIVILEGES FOR ROLE "+q.role+" GRANT "+rights.tables+" ON TABLES TO "+reader.role+";",
			"    ALTER DEFAULT PRIVILEGES FOR ROLE "+q.role+" GRANT "+rights.sequences+" ON SEQUENCES TO "+reader.role+";",
			"    ALTER DEFAULT PRIVILEGES FOR ROLE "+q.role+" GRANT "+rights.schemas+" ON SCHEMAS TO "+reader.role+";",
			"  END IF;"))
	}
	return statements
}

// missing is a query whose answer is what is not prepared yet, in words, or "".
func (q *postgresQuoter) missing() string {
	role := "(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = " + q.roleText + ")"
	exists := "EXISTS " + role
	conditions := []string{
		"CASE WHEN NOT " + exists + " THEN 'the capability role is missing' END",
		"CASE WHEN NOT pg_catalog.pg_has_role(current_user, " + role + ", 'MEMBER WITH ADMIN OPTION')" +
			" AND NOT (pg_catalog.current_setting('server_version_num')::int < 160000 AND (SELECT rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user))" +
			" THEN 'Vault''s login may not make members of the capability role' END",
		"CASE WHEN EXISTS (" + publicRights + ") THEN 'PUBLIC has rights on schema public' END",
	}
	for _, right := range strings.Split(q.rights.database, ", ") {
		conditions = append(conditions, "CASE WHEN NOT pg_catalog.has_database_privilege("+role+", pg_catalog.current_database(), '"+right+"') THEN 'the capability role lacks "+right+" on the database' END")
	}
	for _, right := range strings.Split(q.rights.schemas, ", ") {
		conditions = append(conditions, "CASE WHEN (SELECT NOT pg_catalog.has_schema_privilege("+role+", oid, '"+right+"') FROM pg_catalog.pg_namespace WHERE nspname = 'public') THEN 'the capability role lacks "+right+" on schema public' END")
	}
	return "SELECT pg_catalog.concat_ws(', ', " + strings.Join(conditions, ", ") + ")"
}
