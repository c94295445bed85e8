package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
)

// accountNote is an account's record as a server keeps it beside the login, which
// spares two writes to Vault's storage per login. Everybody who can log in there
// may read it: it holds names and ids. The end of the account is the server's own
// knowledge ([account.Login.Expires]).
type accountNote struct {
	// Version tells our notes from anything else that may stand there.
	Version      int    `json:"dbops"`
	RecordID     string `json:"record"`
	ConnectionID string `json:"connection"`
	Role         string `json:"role"`
	EntityID     string `json:"entity,omitempty"`
	Created      int64  `json:"created"` // Unix milliseconds
	// Longest is to when the login may be renewed, in Unix milliseconds.
	Longest int64 `json:"longest"`
}

const noteVersion = 1

// noteOf is the note of a record that may be renewed until longest.
func noteOf(r *accountRecord, longest time.Time) (string, error) {
	content, err := json.Marshal(accountNote{
		Version: noteVersion, RecordID: r.ID, ConnectionID: r.ConnectionID, Role: r.Role, EntityID: r.EntityID,
		Created: r.CreatedAt.UnixMilli(), Longest: longest.UnixMilli(),
	})
	if err != nil {
		return "", fmt.Errorf("encode note: %w", err)
	}
	return string(content), nil
}

// recordOfNote is the record that a server keeps of a login on c; ok is false when
// its note is none of ours.
func recordOfNote(l account.Login, c *connection) (record *accountRecord, note accountNote, ok bool) {
	if json.Unmarshal([]byte(l.Note), &note) != nil || note.Version != noteVersion || !strings.HasPrefix(note.RecordID, groupCreds+"/") {
		return nil, accountNote{}, false
	}
	record = &accountRecord{
		ID: note.RecordID, Connection: c.Name, ConnectionID: c.ID, Role: note.Role, Username: l.Name, EntityID: note.EntityID,
		CreatedAt: time.UnixMilli(note.Created), ExpiresAt: l.Expires.Add(-expirySlack), atServer: true,
	}
	switch {
	case !l.CanLogin:
		record.ExpiresAt = record.CreatedAt // it was being ended
	case l.Expires.IsZero():
		record.ExpiresAt = time.UnixMilli(note.Longest) // somebody took its end away
	}
	return record, note, true
}

// serverKeeps decides whether the server keeps the record of a login that is about
// to be made. Its name must carry the mount's id, by which it is found again, and
// statements of the role's own to end it are kept nowhere but in our record.
func (b *backend) serverKeeps(ctx context.Context, s logical.Storage, c *connection, driver account.Driver, role *role, statements []string, r *accountRecord) (bool, error) {
	if r.OperationID != "" || len(role.RevocationStatements) > 0 || len(role.RenewStatements) > 0 || !driver.Keeps(statements) {
		return false, nil
	}
	id, err := b.mountID(ctx, s)
	if err != nil {
		return false, err
	}
	return strings.HasPrefix(r.Username, c.product.usernames.prefix(id)), nil
}

// learnAccounts makes sure that all accounts of a connection are known: those in
// storage and those that its server keeps. After the first success it costs
// nothing.
func (b *backend) learnAccounts(ctx context.Context, s logical.Storage, c *connection) error {
	if err := b.loadAccounts(ctx, s); err != nil {
		return err
	}
	if !c.product.keepsRecords || b.accounts.index.wasAsked(c.ID) {
		return nil
	}
	_, err := b.askServer(ctx, s, c)
	return c.explain(err)
}

// serverLogins is which logins of this mount a server has.
type serverLogins struct {
	// orphans are those that nobody knows: a restored snapshot of Vault's storage
	// leaves such.
	orphans []string
	// learned are those that this connection has made, by the record that the server
	// keeps and that was not known here.
	learned []string
	// others are how many more it has: known already, or another connection's.
	others int
	// unsure is whether one that is to go was left to a connection whose server was
	// not heard since the start.
	unsure bool
}

// askServer reads from a server which logins of this mount it has, and makes known
// those whose record it keeps. Stored records have to be known before.
func (b *backend) askServer(ctx context.Context, s logical.Storage, c *connection) (found serverLogins, err error) {
	if c.flag(detailSelfManaged) && c.detail(detailUsername) == "" {
		// Without a user of its own it can have made no logins, and nobody can ask.
		b.accounts.index.setAsked(c.ID)
		return serverLogins{}, nil
	}
	mountID, err := b.mountID(ctx, s)
	if err != nil {
		return serverLogins{}, err
	}
	driver, err := c.open()
	if err != nil {
		return serverLogins{}, err
	}
	// Known before, for it may be ended while the server answers, and after, for
	// it may be made then.
	before := b.accounts.index.usernames()
	prefix := c.product.usernames.prefix(mountID)
	logins, err := driver.Logins(ctx, prefix)
	if err != nil {
		return serverLogins{}, err
	}
	after := b.accounts.index.usernames()
	for _, l := range logins {
		if before[l.Name] || after[l.Name] || !strings.HasPrefix(l.Name, prefix) {
			found.others++
			continue
		}
		record, note, ok := recordOfNote(l, c)
		if !ok {
			if l.CanLogin {
				found.orphans = append(found.orphans, l.Name)
			}
			continue
		}
		if note.ConnectionID != c.ID {
			left, unsure, err := b.leftToMaker(ctx, s, note.ConnectionID, record)
			if err != nil {
				return serverLogins{}, err
			}
			if left {
				found.others++
				found.unsure = found.unsure || unsure
				continue
			}
		} else {
			found.learned = append(found.learned, l.Name)
		}
		b.accounts.index.add(record, endOf(record), 0)
	}
	b.accounts.index.setAsked(c.ID)
	return found, nil
}

// leftToMaker decides whether a login that another connection has made is left to
// that one, which finds it by itself if both lead to one server. One that is gone
// leaves it to whoever finds it. So does one whose server has told that it does not
// have the login, once the login is to go: what was found is a copy then, on a server
// made of the other one's backup. Until that server has told, unsure is true.
func (b *backend) leftToMaker(ctx context.Context, s logical.Storage, makerID string, record *accountRecord) (left, unsure bool, err error) {
	exists, err := b.connectionByID(ctx, s, makerID)
	if err != nil || !exists {
		return false, false, err
	}
	due := b.locked() || !b.now().Before(endOf(record))
	unsure = due && !b.accounts.index.wasAsked(makerID)
	return !due || unsure, unsure, nil
}

// renewedElsewhere reports whether the server keeps a later end of a login that is due
// than is known here, and notes it. Others may renew it: a Vault that was started from
// a snapshot of this one, or the node that is active now if this one is not any more
// and does not know yet.
func (b *backend) renewedElsewhere(ctx context.Context, s logical.Storage, recordID string) bool {
	known := b.accounts.index.keptAtServer(recordID)
	if known == nil || b.locked() {
		return false
	}
	c, err := b.connectionOf(ctx, s, known.Connection, known.ConnectionID)
	if err != nil || c == nil || c.down(b.now()) {
		return false // ending it says what is wrong
	}
	driver, err := c.open()
	if err != nil {
		return false
	}
	// By its name alone: after an outage thousands may be due.
	l, found, err := driver.Find(ctx, known.Username)
	if err != nil || !found {
		return false
	}
	record, note, ok := recordOfNote(l, c)
	if !ok || record.ID != recordID || !l.CanLogin {
		return false
	}
	// Nobody can have renewed it for longer, whatever stands there.
	if longest := time.UnixMilli(note.Longest); record.ExpiresAt.After(longest) {
		record.ExpiresAt = longest
	}
	// The server keeps whole seconds.
	if !record.ExpiresAt.After(known.ExpiresAt.Add(time.Second)) || !b.now().Before(endOf(record)) {
		return false
	}
	b.accounts.index.put(record, endOf(record), 0)
	return true
}

// connectionByID reports whether any connection, current or retired, has the id.
func (b *backend) connectionByID(ctx context.Context, s logical.Storage, id string) (bool, error) {
	retired, err := b.retired.get(ctx, s, id)
	if err != nil || retired != nil {
		return retired != nil, err
	}
	names, err := listStored(ctx, s, prefixConfig)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		c, err := b.connections.get(ctx, s, name)
		if err != nil {
			return false, err
		}
		if c != nil && c.ID == id {
			return true, nil
		}
	}
	return false, nil
}

// endOrphans ends logins with this mount's id that nobody knows. One that cannot be
// ended holds up the others only if the server cannot be reached.
func (b *backend) endOrphans(ctx context.Context, s logical.Storage, c *connection, names []string) error {
	var errs []error
	for _, name := range names {
		now := b.now()
		record := &accountRecord{
			ID: newRecordID(""), Connection: c.Name, ConnectionID: c.ID, Username: name, CreatedAt: now, ExpiresAt: now,
		}
		if err := b.keepRecord(ctx, s, record); err != nil {
			return err
		}
		b.Logger().Warn("a login of this mount has no record and is ended", "connection", c.Name, "username", name)
		b.noteOrphan(c.Name, name)
		if err := b.endAccount(ctx, s, record.ID); err != nil {
			errs = append(errs, fmt.Errorf("end %s: %w", name, err))
			if unavailable(err) {
				break
			}
		}
	}
	return errors.Join(errs...)
}
