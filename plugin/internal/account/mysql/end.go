package mysql

import (
	"context"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// End locks every account of the user, ends its sessions, which outlive their user
// otherwise, and drops the accounts. Custom statements stand for the last.
func (d *Driver) End(ctx context.Context, req account.EndRequest) error {
	const op = "end"
	statements, err := d.render(op, req.Statements, d.values(req.Username))
	if err != nil {
		return err
	}
	return d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, s *session) error {
		found, err := d.accountsOf(ctx, s, op, req.Username)
		if err != nil || found.missing() {
			return err
		}
		if err := d.lock(ctx, s, op, req.Username, found); err != nil {
			return err
		}
		if err := d.endSessions(ctx, s, op, req.Username); err != nil {
			return err
		}
		if len(statements) == 0 {
			err = d.drop(ctx, s, op, req.Username, found)
		} else {
			err = d.runCustomEnd(ctx, s, req.Username, statements)
		}
		if err != nil {
			return err
		}
		// Once more, for one that had passed the check before the lock.
		return d.endSessions(ctx, s, op, req.Username)
	})
}

// lock shuts the user out. Servers too old to know it are passed over: the user
// is about to be dropped.
func (d *Driver) lock(ctx context.Context, s *session, op, username string, found accounts) error {
	list, err := found.list(s, op, username, "")
	if err != nil {
		return err
	}
	err = s.exec(ctx, "ALTER USER IF EXISTS "+list+" ACCOUNT LOCK")
	if number(err) == errSyntax {
		return nil
	}
	return err
}

// drop removes the user with all its grants.
func (d *Driver) drop(ctx context.Context, s *session, op, username string, found accounts) error {
	list, err := found.list(s, op, username, "")
	if err != nil {
		return err
	}
	return s.exec(ctx, "DROP USER IF EXISTS "+list)
}

// runCustomEnd runs the role's own revocation statements. That they fail because
// the user is gone is success.
func (d *Driver) runCustomEnd(ctx context.Context, s *session, username string, statements []string) error {
	const op = "end"
	_, err := s.run(ctx, statements)
	if number(err) == 0 {
		return err
	}
	found, checkErr := d.accountsOf(ctx, s, op, username)
	if checkErr == nil && found.missing() {
		return nil
	}
	return err
}

// endSessions kills the user's sessions.
func (d *Driver) endSessions(ctx context.Context, s *session, op, username string) error {
	name, err := s.literal(op, username)
	if err != nil {
		return err
	}
	ids, err := s.column(ctx, "SELECT ID FROM information_schema.PROCESSLIST WHERE HEX(USER) = HEX("+name+") AND ID <> CONNECTION_ID()")
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return d.checkSight(ctx, s, op)
	}
	for _, id := range ids {
		// The id is a number from the server.
		err := s.exec(ctx, "KILL "+id)
		if n := number(err); n == errKillDenied || n == errPrivilege {
			err = s.exec(ctx, "CALL mysql.rds_kill("+id+")") // where the operator is no superuser
			if number(err) != 0 && number(err) != errUnknownThread {
				return &account.Error{
					Op: op, Code: wire.CodePrivilege,
					Reason: "the connection's user may not end the login's sessions; grant it CONNECTION_ADMIN (MySQL) or CONNECTION ADMIN (MariaDB)",
				}
			}
		}
		if err != nil && number(err) != errUnknownThread {
			return err
		}
	}
	return nil
}

// checkSight makes sure that no session was seen because there is none, not
// because our user may not see it. The table asked is for whoever may see all
// sessions.
func (d *Driver) checkSight(ctx context.Context, s *session, op string) error {
	if d.seesSessions.Load() {
		return nil
	}
	_, err := s.column(ctx, "SELECT trx_id FROM information_schema.INNODB_TRX LIMIT 1")
	switch number(err) {
	case 0:
		if err == nil {
			d.seesSessions.Store(true)
		}
		return err
	case errPrivilege:
		return &account.Error{
			Op: op, Code: wire.CodePrivilege,
			Reason: "the connection's user may not see the login's sessions; grant it PROCESS",
		}
	default:
		return nil // a server without InnoDB says nothing about the privilege
	}
}
