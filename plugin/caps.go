package plugin

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// caps limit how many logins creds/ makes. They stand on roles and on
// connections; 0 is no limit. Logins of operations have limits of their own, in
// policies, and are neither counted nor refused here.
type caps struct {
	// MaxLeases is how many logins there may be at a time. One that could not be
	// ended yet counts until it is gone.
	MaxLeases int `json:"max_leases,omitempty"`
	// MaxPerMinute is how many may be made within any 60 s. Those that were ended
	// meanwhile and those the database refused count too.
	MaxPerMinute int `json:"max_per_minute,omitempty"`
	// The same for each entity. All tokens without an entity count as one.
	MaxLeasesPerEntity    int `json:"max_leases_per_entity,omitempty"`
	MaxPerMinutePerEntity int `json:"max_per_minute_per_entity,omitempty"`
}

// capWindow is the minute of max_per_minute.
const capWindow = time.Minute

// Names of the limits, in requests and in refusals.
const (
	capLeases             = "max_leases"
	capPerMinute          = "max_per_minute"
	capLeasesPerEntity    = "max_leases_per_entity"
	capPerMinutePerEntity = "max_per_minute_per_entity"
)

// byName leads to each limit.
func (l *caps) byName() map[string]*int {
	return map[string]*int{
		capLeases: &l.MaxLeases, capPerMinute: &l.MaxPerMinute,
		capLeasesPerEntity: &l.MaxLeasesPerEntity, capPerMinutePerEntity: &l.MaxPerMinutePerEntity,
	}
}

// capFields are the limits as fields of a request.
func capFields() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		capLeases:             {Type: framework.TypeInt, Description: "Most logins of creds/ at a time; 0 is no limit."},
		capPerMinute:          {Type: framework.TypeInt, Description: "Most logins of creds/ made within any minute; 0 is no limit."},
		capLeasesPerEntity:    {Type: framework.TypeInt, Description: "max_leases for each identity; tokens without an entity count as one."},
		capPerMinutePerEntity: {Type: framework.TypeInt, Description: "max_per_minute for each identity; tokens without an entity count as one."},
	}
}

// merge applies a request.
func (l *caps) merge(data *framework.FieldData) error {
	for name, limit := range l.byName() {
		value, ok := givenField[int](data, name)
		if !ok {
			continue
		}
		if value < 0 {
			return invalidField(name, "is negative")
		}
		*limit = value
	}
	return nil
}

// show adds the limits that are set to an answer. The others are left out: tools
// for Vault's engine know no such keys.
func (l *caps) show(answer map[string]any) {
	for name, limit := range l.byName() {
		if *limit > 0 {
			answer[name] = *limit
		}
	}
}

func (l *caps) none() bool { return *l == caps{} }

// capScope is what logins are counted by.
type capScope struct {
	kind   capKind
	name   string
	entity string // with byEntity
	// byEntity tells the scope of tokens without an entity from that of all.
	byEntity bool
}

type capKind string

const (
	capOfRole       capKind = "role"
	capOfConnection capKind = "connection"
)

// capScopes lists the scopes a login counts in; none for one of an operation.
func capScopes(r *accountRecord) []capScope {
	if r.OperationID != "" {
		return nil
	}
	scopes := []capScope{
		{kind: capOfConnection, name: r.Connection},
		{kind: capOfConnection, name: r.Connection, entity: r.EntityID, byEntity: true},
	}
	if r.Role != "" {
		scopes = append(scopes,
			capScope{kind: capOfRole, name: r.Role},
			capScope{kind: capOfRole, name: r.Role, entity: r.EntityID, byEntity: true})
	}
	return scopes
}

// capCount is what is known of a scope.
type capCount struct {
	live int
	// made are the times of what was made within the last minute, oldest first.
	made []time.Time
}

// forget drops what is older than a minute.
func (c *capCount) forget(now time.Time) {
	old := 0
	for old < len(c.made) && !now.Before(c.made[old].Add(capWindow)) {
		old++
	}
	c.made = c.made[old:]
}

// capCounts counts logins by scope. Its user locks.
type capCounts map[capScope]*capCount

// add counts a login that was not counted before. Without a time within the last
// minute only its existence counts.
func (n capCounts) add(r *accountRecord, now time.Time) {
	for _, scope := range capScopes(r) {
		count := n[scope]
		if count == nil {
			count = &capCount{}
			n[scope] = count
		}
		count.live++
		count.forget(now)
		if now.Before(r.CreatedAt.Add(capWindow)) {
			at := len(count.made)
			for at > 0 && r.CreatedAt.Before(count.made[at-1]) {
				at-- // records are read in any order after a start
			}
			count.made = append(count.made, time.Time{})
			copy(count.made[at+1:], count.made[at:])
			count.made[at] = r.CreatedAt
		}
	}
}

func (n capCounts) remove(scopes []capScope) {
	for _, scope := range scopes {
		if count := n[scope]; count != nil {
			count.live--
		}
	}
}

// forget drops scopes in which nothing counts any more.
func (n capCounts) forget(now time.Time) {
	for scope, count := range n {
		count.forget(now)
		if count.live <= 0 && len(count.made) == 0 {
			delete(n, scope)
		}
	}
}

// capRule is one limit that applies to a request.
type capRule struct {
	name  string
	scope capScope
	limit int
	live  bool // counts what exists, not what was made within a minute
}

// rules are the limits that are set.
func (l *caps) rules(kind capKind, name, entity string) []capRule {
	all := capScope{kind: kind, name: name}
	own := capScope{kind: kind, name: name, entity: entity, byEntity: true}
	var set []capRule
	for _, r := range []capRule{
		{capLeases, all, l.MaxLeases, true},
		{capPerMinute, all, l.MaxPerMinute, false},
		{capLeasesPerEntity, own, l.MaxLeasesPerEntity, true},
		{capPerMinutePerEntity, own, l.MaxPerMinutePerEntity, false},
	} {
		if r.limit > 0 {
			set = append(set, r)
		}
	}
	return set
}

// reached reports whether the rule lets nothing more through, and for a limit per
// minute from when it will.
func (n capCounts) reached(r capRule, now time.Time) (reached bool, until time.Time) {
	count := n[r.scope]
	if count == nil {
		return false, time.Time{}
	}
	if r.live {
		return count.live >= r.limit, time.Time{}
	}
	count.forget(now)
	if len(count.made) < r.limit {
		return false, time.Time{}
	}
	return true, count.made[len(count.made)-r.limit].Add(capWindow)
}

// refusal says which limit is used up. The caller may come again at retryAt.
func (r capRule) refusal(retryAt time.Time) *wire.Error {
	per := ""
	if r.scope.byEntity {
		per = " of this identity"
	}
	reason := fmt.Sprintf("%s %q has its %d logins%s", r.scope.kind, r.scope.name, r.limit, per)
	hint := "revoke a lease that is not needed any more, or come again when one has ended"
	if !r.live {
		reason = fmt.Sprintf("%s %q made its %d logins%s of this minute", r.scope.kind, r.scope.name, r.limit, per)
		hint = ""
	}
	return &wire.Error{Code: wire.CodeRateLimited, Rule: r.name, Reason: reason, RetryAt: retryAt, Hint: hint}
}

// admit notes the login that is about to be made, unless a limit is used up: then
// it returns a [wire.Error] with code rate_limited and nothing is noted. Looking
// and noting are one step, so parallel requests never pass a limit together.
func (x *accountIndex) admit(r *accountRecord, due time.Time, rules []capRule, now time.Time) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var refusal *wire.Error
	for _, rule := range rules {
		reached, until := x.counts.reached(rule, now)
		if !reached {
			continue
		}
		if rule.live {
			until = x.firstToEnd(rule.scope, now)
		}
		if refusal == nil || until.After(refusal.RetryAt) {
			refusal = rule.refusal(until)
		}
	}
	if refusal != nil {
		return refusal
	}
	x.set(r, due, 0, now)
	return nil
}

// firstToEnd is when the first login of a scope ends unless it is renewed, in a
// second at the earliest. The caller holds the lock.
func (x *accountIndex) firstToEnd(scope capScope, now time.Time) time.Time {
	var first time.Time
	for _, entry := range x.entries {
		for _, other := range entry.scopes {
			end := entry.due
			if entry.attempts == 0 {
				end = end.Add(-endGrace) // its lease ends it
			}
			if other == scope && (first.IsZero() || end.Before(first)) {
				first = end
			}
		}
	}
	if earliest := now.Add(time.Second); first.Before(earliest) {
		return earliest
	}
	return first
}

// admitAccount keeps to the limits of the role and its connection. After a start
// it reads all records first, when there are limits, and asks the server for those
// that it keeps.
func (b *backend) admitAccount(ctx context.Context, s logical.Storage, c *connection, role *role, record *accountRecord) error {
	due := endOf(record)
	if record.OperationID != "" || role.none() && c.none() {
		return b.accounts.index.admit(record, due, nil, b.now())
	}
	if err := b.learnAccounts(ctx, s, c); err != nil {
		return err
	}
	rules := append(role.rules(capOfRole, role.Name, record.EntityID), c.rules(capOfConnection, c.Name, record.EntityID)...)
	return b.accounts.index.admit(record, due, rules, b.now())
}

// loadAccounts makes the index complete, if the sweeper has not done so yet.
func (b *backend) loadAccounts(ctx context.Context, s logical.Storage) error {
	if b.accounts.index.complete() {
		return nil
	}
	_, err, _ := b.accounts.loads.Do("", func() (any, error) {
		return nil, b.accounts.index.load(context.WithoutCancel(ctx), s, endOf)
	})
	return err
}

// endOf is when the sweep ends an account whose lease did not.
func endOf(r *accountRecord) time.Time { return r.ExpiresAt.Add(endGrace) }
