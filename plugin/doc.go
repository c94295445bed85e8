// Package plugin is the dbops secrets engine: everything that is a method on the
// backend of one mount. [FactoryFor] makes it; cmd/vault-plugin-secrets-dbops serves
// it to Vault. Start reading at backend.go.
//
// # Paths
//
// Files are named after the paths they serve.
//
//	config/:name       how to reach a database server   as in Vault's database engine
//	roles/:name        which statements make a login    as in Vault's database engine
//	creds/:name        a leased login                   the same, and ttl
//	static-roles/:name a login that exists; its credential is kept and rotated
//	static-creds/:name that credential
//	rotate-{role,root}/:name rotate-all/:connection reset/:name reload/:plugin
//	connections/:name  what operations may know of a connection
//	policies/:name     who may run which operation where
//	clone/:src/:dst    ask for an operation
//	operations/:id     one's own operations; all/operations is everybody's
//	agents/:name       agents, and below it the protocol they work by
//	revocations/:id    logins that could not be ended yet
//	keys               public keys of receipts; keys/rotate signs with a new one
//	lockdown unlock    stop everything, and what is left of it
//	posture            what is weak; posture/:connection is one connection's
//	metrics            Prometheus' text format
//	settings           of the mount: how long operations are kept
//	info               versions
//
// # Storage
//
//	schema               version of this layout; a newer one is refused
//	mount                the id in the names of this mount's logins
//	config/<name>        connection, with its secrets (seal-wrapped)
//	retired/<id>         a connection that was deleted or re-pointed, until its last account is gone
//	role/<name>          role
//	static-role/<name>   static role, with its credential (seal-wrapped)
//	rotation/role/<name> a rotation of a static role that was begun, with the new credential (seal-wrapped)
//	rotation/own/<id>    the same of a connection's own user, by the connection's id (seal-wrapped)
//	rotation/all/<name>  that all static roles of a connection are to be rotated
//	account/<group>/<id> one login that exists or may exist; the group is an operation or "creds"
//	revocation/<id>      a login that could not be ended, and when to try again
//	operation-receipt/<id>/ the receipt of an operation that has ended
//	signing-key/<hex>    a key that signs receipts or did (seal-wrapped)
//	settings             how long operations are kept, if somebody has said
//	lockdown             whether the mount is locked down, by whom and why, and former lockdowns
//	break-glass          after how long whoever locked may unlock alone
//
// The keys of operations, policies and agents are described where they are used.
//
// # Guarantees of accounts
//
//   - The record of a login is stored before the login is made and removed after
//     it is gone. Whatever crashes in between, a sweep (every 5 s, and on Vault's
//     tick) ends what is over: no login outlives its ttl by more than 60 s while
//     its server and Vault can be reached.
//   - PostgreSQL keeps the record of a login of creds/ itself, in the transaction
//     that makes it: VALID UNTIL and a comment on the role, if the role has no
//     statements of its own to renew or revoke. Servers are asked for those at
//     start, once more soon after, and every ten minutes; every 20 s while they have
//     a login that is over and may be another server's, which was not heard yet.
//   - A login with this mount's id in its name and no record is ended; the servers
//     are asked at start and every ten minutes. Two Vaults that share a copied
//     storage share the id: do not let both reach the databases.
//   - Ending shuts the login out, ends its sessions, hands over what it owns in
//     every database of the server, and drops it. What fails is stored and tried
//     for ever; revoking a lease then succeeds, so none becomes irrevocable.
//   - What a preset does stands in no other place than in what reading its role
//     shows: written as statements of one's own it does the same.
//   - A server that does not answer delays no other. No lock is held while a
//     database is asked; each call has its own timeout.
//   - Sessions to databases are closed after a second without use, since a clone
//     renames databases, which PostgreSQL refuses while anybody is connected.
//   - Passwords of logins are in no storage entry, log or error of ours, and reach
//     a PostgreSQL server as a SCRAM verifier only, unless password_authentication
//     says password.
package plugin
