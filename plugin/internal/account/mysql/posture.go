package mysql

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/posture"
)

var _ account.Inspector = (*Driver)(nil)

// Times of an inspection: of the whole, and of one of its queries.
const (
	inspectTimeout = 4 * time.Second
	inspectQuery   = 1500 * time.Millisecond
)

// errUnknownColumn is what a server without a column says.
const errUnknownColumn = 1054

// question is one thing that is looked at.
type question struct {
	what  string
	right string // that answers it where it is refused
	ask   func(context.Context, *session) error
}

// Inspect asks the server. It is read-only: queries and SHOW.
func (d *Driver) Inspect(ctx context.Context) (posture.Facts, error) {
	var facts posture.Facts
	err := d.with(ctx, "inspect", inspectTimeout, func(ctx context.Context, s *session) error {
		f := &posture.MySQLFacts{}
		facts = posture.Facts{MySQL: f}
		status, err := s.pairs(ctx, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")
		if err != nil {
			return err
		}
		facts.Session.TLS = status["Ssl_cipher"] != ""
		facts.Session.Verified = d.parsed.TLS != nil && !d.parsed.TLS.InsecureSkipVerify && !d.parsed.AllowFallbackToPlaintext
		for _, q := range d.questions(f) {
			limited, cancel := context.WithTimeout(ctx, inspectQuery)
			err := q.ask(limited, s)
			cancel()
			switch n := number(err); {
			case err == nil:
			case n == 0:
				return err // the session is gone
			case n == errTableDenied, n == errDatabaseDenied, n == errColumnDenied, n == errPrivilege:
				facts.Unchecked = append(facts.Unchecked, posture.Unchecked{What: q.what, Why: "needs " + q.right})
			default:
				facts.Unchecked = append(facts.Unchecked, posture.Unchecked{What: q.what, Why: "the server refused: " + reasonOf(err)})
			}
		}
		if !f.TestDatabase && !seesDatabases(f.OwnRights) {
			facts.Unchecked = append(facts.Unchecked, posture.Unchecked{What: "whether the database test is there", Why: "needs SHOW DATABASES ON *.*"})
		}
		return nil
	})
	return facts, err
}

func reasonOf(err error) string {
	var e *account.Error
	if errors.As(translate("inspect", err), &e) {
		return e.Reason
	}
	return "for an unknown reason"
}

// seesDatabases reports whether rights show every database.
func seesDatabases(rights []string) bool {
	for _, right := range rights {
		if right == "SHOW DATABASES" || right == "SELECT" || right == "SUPER" {
			return true
		}
	}
	return false
}

func (d *Driver) questions(f *posture.MySQLFacts) []question {
	return []question{
		{what: "variables", right: "a login that may read them", ask: func(ctx context.Context, s *session) (err error) {
			quoted := make([]string, 0, len(posture.MySQLVariables()))
			for _, name := range posture.MySQLVariables() {
				quoted = append(quoted, "'"+name+"'")
			}
			f.Variables, err = s.pairs(ctx, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ("+strings.Join(quoted, ", ")+")")
			if _, has := f.Variables[posture.MySQLHaveSSL]; has || err != nil {
				return err
			}
			// MySQL 8.4 and newer do not say it in a variable.
			status, err := s.pairs(ctx, "SHOW GLOBAL STATUS LIKE 'Ssl_server_not_after'")
			f.NoCertificate = err == nil && status["Ssl_server_not_after"] == ""
			return err
		}},
		{what: "its own rights", right: "a login that may read them", ask: func(ctx context.Context, s *session) error { return ownRights(ctx, s, f) }},
		{what: "databases", right: "SHOW DATABASES ON *.*", ask: func(ctx context.Context, s *session) error {
			found, err := s.column(ctx, "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = 'test'")
			f.TestDatabase = len(found) > 0
			return err
		}},
		{what: "accounts", right: "SELECT ON mysql.user", ask: func(ctx context.Context, s *session) (err error) {
			f.Accounts, err = accountList(ctx, s)
			return err
		}},
	}
}

// ownRights reads the global rights of our own account, and those on the database
// mysql, which are as good.
func ownRights(ctx context.Context, s *session, f *posture.MySQLFacts) error {
	own, err := s.column(ctx, "SELECT CURRENT_USER()")
	if err != nil || len(own) != 1 {
		return err
	}
	// The host has no @; the user may have some.
	at := strings.LastIndexByte(own[0], '@')
	if at < 0 {
		return nil
	}
	f.OwnUser, f.OwnHost = own[0][:at], own[0][at+1:]
	grantee, err := s.literal("inspect", "'"+f.OwnUser+"'@'"+f.OwnHost+"'")
	if err != nil {
		return err
	}
	global, err := s.column(ctx, "SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = "+grantee)
	if err != nil {
		return err
	}
	system, err := s.column(ctx, "SELECT CONCAT(PRIVILEGE_TYPE, ' ON mysql.*') FROM information_schema.SCHEMA_PRIVILEGES WHERE TABLE_SCHEMA IN ('mysql', 'sys', 'mysq%', '%') AND GRANTEE = "+grantee)
	if err != nil {
		return err
	}
	f.OwnRights = append(global, system...)
	return nil
}

// accountList reads mysql.user, whose columns differ between products. What is
// stored of passwords stays on the server.
func accountList(ctx context.Context, s *session) ([]posture.MySQLAccount, error) {
	const head = "SELECT User, Host, plugin, ssl_type <> '', Super_priv = 'Y', "
	const tail = " FROM mysql.user WHERE Host <> '' ORDER BY User, Host LIMIT 2000"
	// An account that needs a certificate of a certain subject needs no password.
	const none = "ssl_type NOT IN ('X509', 'SPECIFIED') AND plugin IN ('', 'mysql_native_password', 'mysql_old_password', 'sha256_password', 'caching_sha2_password', 'ed25519') AND authentication_string = ''"
	var err error
	for _, columns := range []string{
		none + ", account_locked = 'Y'", // MySQL
		none + " AND Password = '', 0",  // MariaDB
	} {
		var accounts []posture.MySQLAccount
		if accounts, err = readAccounts(ctx, s, head+columns+tail); err == nil {
			return unlocked(ctx, s, accounts), nil
		}
		if number(err) != errUnknownColumn {
			return nil, err
		}
	}
	return nil, err
}

func readAccounts(ctx context.Context, s *session, query string) (accounts []posture.MySQLAccount, err error) {
	err = s.rows(ctx, query, func(row *sql.Rows) error {
		var a posture.MySQLAccount
		var tls, super, empty, locked sql.NullBool
		err := row.Scan(&a.User, &a.Host, &a.Plugin, &tls, &super, &empty, &locked)
		a.RequiresTLS, a.Super, a.Empty, a.Locked = tls.Bool, super.Bool, empty.Bool, locked.Bool
		accounts = append(accounts, a)
		return err
	})
	return accounts, err
}

// unlocked marks accounts that MariaDB keeps locked, where we may see that. One
// that only seems open is a finding too many, not one too few.
func unlocked(ctx context.Context, s *session, accounts []posture.MySQLAccount) []posture.MySQLAccount {
	locked, err := s.pairs(ctx, "SELECT CONCAT(User, '@', Host), Host FROM mysql.global_priv WHERE JSON_VALUE(Priv, '$.account_locked') IN ('true', '1')")
	if err != nil {
		return accounts
	}
	for i, a := range accounts {
		if _, found := locked[a.User+"@"+a.Host]; found {
			accounts[i].Locked = true
		}
	}
	return accounts
}
