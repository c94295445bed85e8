package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/posture"
)

var _ account.Inspector = (*Driver)(nil)

// Times of an inspection: of the whole, and of one of its queries.
const (
	inspectTimeout = 4 * time.Second
	inspectQuery   = 1500 * time.Millisecond
)

// question is one thing that is looked at, in a read-only transaction of its own:
// one that may not be answered does not keep the others from it.
type question struct {
	what  string
	right string // that answers it where it is refused
	sql   string
	args  []any
	read  func(pgx.Rows) error
}

// The functions that README offers to superusers, so that the engine's login need
// not be one. They are used only where a superuser owns them and their schema, and
// they run with that one's rights: anybody else's would run with ours.
const trustedFunction = `
SELECT EXISTS (
  SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_roles po ON po.oid = p.proowner JOIN pg_roles no ON no.oid = n.nspowner
   WHERE n.nspname = 'dbops_posture' AND p.proname = $1 AND p.pronargs = 0 AND p.prosecdef AND po.rolsuper AND no.rolsuper
     AND has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')
)`

// Inspect asks the connection's database and its server.
func (d *Driver) Inspect(ctx context.Context) (posture.Facts, error) {
	var facts posture.Facts
	err := d.with(ctx, "inspect", inspectTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		facts = posture.Facts{Postgres: &posture.PostgresFacts{Settings: map[string]string{}}}
		_, facts.Session.TLS = conn.PgConn().Conn().(*tls.Conn)
		facts.Session.Verified = d.verifies()
		passwords, err := source(ctx, conn, "passwords", `
SELECT rolname, CASE WHEN rolpassword LIKE 'md5%' THEN 'md5' WHEN rolpassword LIKE 'SCRAM-SHA-256$%' THEN 'scram' ELSE 'plain' END
  FROM pg_authid WHERE rolpassword IS NOT NULL`)
		if err != nil {
			return err
		}
		hba, err := source(ctx, conn, "hba", `SELECT line_number, type, database, user_name, address, netmask, auth_method FROM pg_hba_file_rules WHERE error IS NULL`)
		if err != nil {
			return err
		}
		for _, q := range questions(facts.Postgres, passwords, hba) {
			err := q.ask(ctx, conn)
			switch {
			case err == nil:
			case sqlState(err) == "" || ctx.Err() != nil || conn.IsClosed():
				return err
			case sqlState(err) == stateInsufficientPrivilege:
				facts.Unchecked = append(facts.Unchecked, posture.Unchecked{What: q.what, Why: q.right})
			default:
				facts.Unchecked = append(facts.Unchecked, posture.Unchecked{What: q.what, Why: "SQLSTATE " + sqlState(err)})
			}
		}
		return nil
	})
	return facts, err
}

// source is a query of the function dbops_posture.<name>, where it can be
// trusted, else the query given.
func source(ctx context.Context, conn *pgx.Conn, name, direct string) (string, error) {
	var trusted bool
	q := question{sql: trustedFunction, args: []any{name}, read: func(rows pgx.Rows) error { return rows.Scan(&trusted) }}
	if err := q.ask(ctx, conn); err != nil {
		return "", err
	}
	if trusted {
		return `SELECT * FROM dbops_posture.` + name + `()`, nil
	}
	return direct, nil
}

func (q question) ask(ctx context.Context, conn *pgx.Conn) (err error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreClosed(tx.Rollback(ctx))) }()
	// Operators and functions of other schemas would run with our rights.
	setup := fmt.Sprintf("SET LOCAL search_path = pg_catalog; SET LOCAL statement_timeout = %d; SET LOCAL lock_timeout = %d",
		inspectQuery.Milliseconds(), inspectQuery.Milliseconds())
	if err := conn.PgConn().Exec(ctx, setup).Close(); err != nil {
		return err
	}
	rows, err := tx.Query(ctx, q.sql, q.args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := q.read(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func ignoreClosed(err error) error {
	if errors.Is(err, pgx.ErrTxClosed) {
		return nil
	}
	return err
}

// verifies reports whether every way this driver may connect checks the server's
// certificate.
func (d *Driver) verifies() bool {
	conn := d.pool.Config().ConnConfig
	checks := func(c *tls.Config) bool {
		return c != nil && (!c.InsecureSkipVerify || c.VerifyPeerCertificate != nil || c.VerifyConnection != nil)
	}
	if !checks(conn.TLSConfig) {
		return false
	}
	for _, fallback := range conn.Fallbacks {
		if !checks(fallback.TLSConfig) {
			return false
		}
	}
	return true
}

// names reads rows of one name each.
func names(into *[]string) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		var name string
		err := rows.Scan(&name)
		*into = append(*into, name)
		return err
	}
}

// mostNames bounds what is read of one kind.
const mostNames = 200

func questions(f *posture.PostgresFacts, passwords, hba string) []question {
	limit := fmt.Sprintf(" LIMIT %d", mostNames)
	userSchemas := `n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'`
	userDatabases := `d.datallowconn AND NOT d.datistemplate`
	function := func(name string) string {
		return "needs the function dbops_posture." + name + "() of README, or the rights of a superuser"
	}
	return []question{
		{
			what: "settings", sql: `SELECT name, setting FROM pg_settings WHERE name = ANY($1::text[])`, args: []any{posture.PostgresSettings()},
			read: func(rows pgx.Rows) error {
				var name, value string
				err := rows.Scan(&name, &value)
				f.Settings[name] = value
				return err
			},
		},
		{
			what: "how passwords are stored", right: function("passwords"), sql: passwords,
			read: func(rows pgx.Rows) error {
				var role, form string
				err := rows.Scan(&role, &form)
				switch form {
				case "md5":
					f.MD5Passwords = append(f.MD5Passwords, role)
				case "plain":
					f.PlainPasswords = append(f.PlainPasswords, role)
				}
				return err
			},
		},
		{
			what: "pg_hba.conf", right: function("hba"), sql: hba,
			read: func(rows pgx.Rows) error {
				var line posture.HBALine
				var address, netmask *string
				if err := rows.Scan(&line.Number, &line.Type, &line.Databases, &line.Users, &address, &netmask, &line.Method); err != nil {
					return err
				}
				if address != nil {
					line.Address = *address
				}
				if netmask != nil {
					line.Netmask = *netmask
				}
				f.HBA = append(f.HBA, line)
				return nil
			},
		},
		{
			what: "rights of PUBLIC to create in schemas", read: names(&f.PublicCreate),
			sql: `SELECT n.nspname::text FROM pg_namespace n WHERE ` + userSchemas + ` AND has_schema_privilege('public', n.oid, 'CREATE') ORDER BY 1` + limit,
		},
		{
			what: "rights of PUBLIC on schemas", read: names(&f.PublicUsage),
			sql: `SELECT n.nspname::text FROM pg_namespace n WHERE ` + userSchemas + ` AND has_schema_privilege('public', n.oid, 'USAGE') ORDER BY 1` + limit,
		},
		{
			what: "rights of PUBLIC on tables", read: names(&f.PublicTables),
			sql: `
SELECT DISTINCT n.nspname || '.' || c.relname
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL aclexplode(c.relacl) a
 WHERE a.grantee = 0 AND ` + userSchemas + `
   AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
 ORDER BY 1` + limit,
		},
		{
			what: "rights of PUBLIC to make temporary tables", read: names(&f.PublicTemp),
			sql: `SELECT d.datname::text FROM pg_database d WHERE ` + userDatabases + ` AND has_database_privilege('public', d.oid, 'TEMPORARY') ORDER BY 1` + limit,
		},
		{
			what: "rights of PUBLIC to connect", read: names(&f.PublicConnect),
			sql: `SELECT d.datname::text FROM pg_database d WHERE ` + userDatabases + ` AND has_database_privilege('public', d.oid, 'CONNECT') ORDER BY 1` + limit,
		},
		{
			what: "superusers", read: names(&f.Superusers),
			sql: `SELECT rolname::text FROM pg_roles WHERE rolsuper AND rolcanlogin AND oid <> 10 AND rolname <> current_user ORDER BY 1` + limit,
		},
		{
			what: "its own rights", read: names(&f.OwnRights),
			sql: `
WITH RECURSIVE me AS (SELECT * FROM pg_roles WHERE rolname = current_user),
held AS (
  SELECT m.roleid, 1 AS depth FROM pg_auth_members m JOIN me ON me.oid = m.member
  UNION SELECT m.roleid, 2 FROM pg_auth_members m JOIN held h ON h.roleid = m.member
)
SELECT 'SUPERUSER' FROM me WHERE rolsuper
UNION ALL SELECT 'CREATEROLE' FROM me WHERE rolcreaterole
UNION ALL SELECT 'CREATEDB' FROM me WHERE rolcreatedb
UNION ALL SELECT 'REPLICATION' FROM me WHERE rolreplication
UNION ALL SELECT 'BYPASSRLS' FROM me WHERE rolbypassrls
UNION ALL SELECT r.rolname FROM held h JOIN pg_roles r ON r.oid = h.roleid
 -- What a capability role may read or write it has for the logins made of it; the
 -- server's files nobody needs.
 WHERE h.depth = 1 AND r.rolname LIKE 'pg\_%'
    OR r.rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program')
UNION ALL SELECT 'member of superuser ' || r.rolname FROM held h JOIN pg_roles r ON r.oid = h.roleid WHERE r.rolsuper`,
		},
	}
}
