package plugin

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/oklog/ulid/v2"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// groupCreds holds the records of accounts that belong to no operation.
const groupCreds = "creds"

// accountRecord is the entry under account/<group>/<ulid>, the group being the
// operation's id or [groupCreds]. It is written before the login is made and
// deleted after the login is gone, so every login has one at any time. For logins
// of creds/ the server itself keeps it where it can; see [accountNote].
type accountRecord struct {
	ID           string       `json:"id"` // <group>/<ulid>
	Connection   string       `json:"connection"`
	ConnectionID string       `json:"connection_id"`
	Role         string       `json:"role"`
	Username     string       `json:"username"`
	Purpose      wire.Purpose `json:"purpose,omitempty"`
	Side         wire.Side    `json:"side,omitempty"`
	OperationID  string       `json:"operation_id,omitempty"`
	EntityID     string       `json:"entity_id,omitempty"`
	// Fence is the number of the claim it was made for.
	Fence string `json:"fence,omitempty"`
	// Unconfirmed: the server never answered that it had made the login.
	Unconfirmed bool      `json:"unconfirmed,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
	// ExpiresAt is when the account has to go, lease or no lease.
	ExpiresAt time.Time `json:"expires_at"`
	// Revocation are the role's statements when the account was made; an account of an
	// operation is ended by these whatever the role says later, and renewed by Renewal.
	Revocation []string `json:"revocation_statements,omitempty"`
	Renewal    []string `json:"renew_statements,omitempty"`

	// atServer says that the server keeps this record and storage does not.
	atServer bool
}

// newRecordID makes the id of a record in a group.
func newRecordID(operationID string) string {
	group := operationID
	if group == "" {
		group = groupCreds
	}
	return group + "/" + ulid.Make().String()
}

func getRecord(ctx context.Context, s logical.Storage, id string) (*accountRecord, error) {
	return getStored[accountRecord](ctx, s, prefixAccount+id)
}

// record returns what is known of an account, wherever its record is kept, or nil.
func (b *backend) record(ctx context.Context, s logical.Storage, id string) (*accountRecord, error) {
	if kept := b.accounts.index.keptAtServer(id); kept != nil {
		return kept, nil
	}
	return getRecord(ctx, s, id)
}

// revocation is the entry under revocation/<ulid of the record>: an account that
// could not be ended yet.
type revocation struct {
	RecordID   string    `json:"record_id"`
	Connection string    `json:"connection"`
	Username   string    `json:"username"`
	Since      time.Time `json:"since"`
	Attempts   int       `json:"attempts"`
	NextTry    time.Time `json:"next_try"`
	Code       wire.Code `json:"code"`
	Reason     string    `json:"reason"` // without secrets
}

// revocationID is the last part of a record's id.
func revocationID(recordID string) string { return recordID[strings.LastIndex(recordID, "/")+1:] }

// accountIndex is what memory knows of every record, to find those that are due
// without reading storage. It is complete once loaded.
type accountIndex struct {
	mu      sync.Mutex
	loaded  bool // all stored records are known
	entries map[string]*accountEntry
	// asked are the connection ids whose server has told, since the start, which
	// logins it keeps.
	asked  map[string]bool
	counts capCounts
	// operations is how many of the entries are logins of operations.
	operations int
	now        func() time.Time
}

type accountEntry struct {
	connection   string
	connectionID string
	username     string
	due          time.Time
	attempts     int
	scopes       []capScope // in which it counts
	operation    bool       // it is the login of one
	// kept is the record when the server keeps it.
	kept *accountRecord
}

func newAccountIndex(now func() time.Time) *accountIndex {
	return &accountIndex{entries: make(map[string]*accountEntry), asked: make(map[string]bool), counts: make(capCounts), now: now}
}

// put notes a record and when it is due.
func (x *accountIndex) put(r *accountRecord, due time.Time, attempts int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.set(r, due, attempts, x.now())
}

// set is put for a caller that holds the lock.
func (x *accountIndex) set(r *accountRecord, due time.Time, attempts int, now time.Time) {
	entry := x.entries[r.ID]
	if entry == nil {
		entry = &accountEntry{scopes: capScopes(r), operation: r.OperationID != ""}
		x.entries[r.ID] = entry
		x.counts.add(r, now)
		if entry.operation {
			x.operations++
		}
	}
	entry.connection, entry.connectionID, entry.username = r.Connection, r.ConnectionID, r.Username
	entry.due, entry.attempts = due, attempts
	entry.kept = nil
	if r.atServer {
		kept := *r
		entry.kept = &kept
	}
}

// keptAtServer returns a copy of a record that a server keeps, nil when there is
// none or it is in storage.
func (x *accountIndex) keptAtServer(id string) *accountRecord {
	x.mu.Lock()
	defer x.mu.Unlock()
	entry := x.entries[id]
	if entry == nil || entry.kept == nil {
		return nil
	}
	kept := *entry.kept
	return &kept
}

// setAsked notes that a connection's server has told which logins it keeps.
func (x *accountIndex) setAsked(connectionID string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.asked[connectionID] = true
}

func (x *accountIndex) wasAsked(connectionID string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.asked[connectionID]
}

// noteAsked adds the ids of connections whose server has told to ids.
func (x *accountIndex) noteAsked(ids map[string]bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id := range x.asked {
		ids[id] = true
	}
}

// forgetAsked forgets what servers have told whose connections are gone.
func (x *accountIndex) forgetAsked(ids map[string]bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id := range ids {
		delete(x.asked, id)
	}
}

// add is put for a record read from storage; what is known already is newer.
func (x *accountIndex) add(r *accountRecord, due time.Time, attempts int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, known := x.entries[r.ID]; !known {
		x.set(r, due, attempts, x.now())
	}
}

// complete reports whether every record is known.
func (x *accountIndex) complete() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.loaded
}

func (x *accountIndex) has(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.entries[id] != nil
}

func (x *accountIndex) remove(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if entry := x.entries[id]; entry != nil {
		x.counts.remove(entry.scopes)
		delete(x.entries, id)
		if entry.operation {
			x.operations--
		}
	}
}

// ofOperations is how many logins of operations there are.
func (x *accountIndex) ofOperations() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.operations
}

// size is the number of records.
func (x *accountIndex) size() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.entries)
}

// attempts is how often ending the account has failed.
func (x *accountIndex) attempts(id string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	if entry := x.entries[id]; entry != nil {
		return entry.attempts
	}
	return 0
}

// dueByServer lists the records that are due, by connection id.
func (x *accountIndex) dueByServer(now time.Time) map[string][]string {
	return x.byServer(now, func(entry *accountEntry) bool { return !now.Before(entry.due) })
}

// endableByServer lists the records that are due or were not tried to be ended
// yet, by connection id.
func (x *accountIndex) endableByServer(now time.Time) map[string][]string {
	return x.byServer(now, func(entry *accountEntry) bool { return entry.attempts == 0 || !now.Before(entry.due) })
}

func (x *accountIndex) byServer(now time.Time, wanted func(*accountEntry) bool) map[string][]string {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.counts.forget(now)
	due := make(map[string][]string)
	for id, entry := range x.entries {
		if wanted(entry) {
			due[entry.connectionID] = append(due[entry.connectionID], id)
		}
	}
	return due
}

// servers lists the connection ids that have records; ok is false before the
// index is complete.
func (x *accountIndex) servers() (ids map[string]bool, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	ids = make(map[string]bool)
	for _, entry := range x.entries {
		ids[entry.connectionID] = true
	}
	return ids, x.loaded
}

// count tells how many records there are, by connection id.
func (x *accountIndex) count() map[string]int {
	x.mu.Lock()
	defer x.mu.Unlock()
	counts := make(map[string]int)
	for _, entry := range x.entries {
		counts[entry.connectionID]++
	}
	return counts
}

// connections names the connections that have records, by their id.
func (x *accountIndex) connections() map[string]string {
	x.mu.Lock()
	defer x.mu.Unlock()
	names := make(map[string]string)
	for _, entry := range x.entries {
		names[entry.connectionID] = entry.connection
	}
	return names
}

// usernames lists the names of all accounts that are known.
func (x *accountIndex) usernames() map[string]bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	names := make(map[string]bool, len(x.entries))
	for _, entry := range x.entries {
		names[entry.username] = true
	}
	return names
}

// load reads every record. It may run beside requests that write some.
func (x *accountIndex) load(ctx context.Context, s logical.Storage, due func(*accountRecord) time.Time) error {
	tries, err := loadRevocations(ctx, s)
	if err != nil {
		return err
	}
	groups, err := listStored(ctx, s, prefixAccount)
	if err != nil {
		return err
	}
	for _, group := range groups {
		ids, err := listStored(ctx, s, prefixAccount+group)
		if err != nil {
			return err
		}
		for _, id := range ids {
			record, err := getRecord(ctx, s, group+id)
			if err != nil {
				return err
			}
			if record == nil {
				continue
			}
			if failed := tries[record.ID]; failed != nil {
				x.add(record, failed.NextTry, failed.Attempts)
				delete(tries, record.ID)
				continue
			}
			x.add(record, due(record), 0)
		}
	}
	// What is left lost its record in a crash right after the account was gone.
	var errs []error
	for id := range tries {
		record, err := getRecord(ctx, s, id)
		if err == nil && record == nil {
			err = deleteStored(ctx, s, prefixRevocation+revocationID(id))
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.loaded = true
	return nil
}

func loadRevocations(ctx context.Context, s logical.Storage) (map[string]*revocation, error) {
	ids, err := listStored(ctx, s, prefixRevocation)
	if err != nil {
		return nil, err
	}
	tries := make(map[string]*revocation, len(ids))
	for _, id := range ids {
		failed, err := getStored[revocation](ctx, s, prefixRevocation+id)
		if err != nil {
			return nil, err
		}
		if failed != nil {
			tries[failed.RecordID] = failed
		}
	}
	return tries, nil
}
