// Package parity holds a test that asks Vault's built-in database engine and ours
// the same things, behind one Vault and on the same databases, and compares the
// answers: class of status, JSON keys, JSON types. What may differ stands on one
// list, with its reason; an entry that nothing needs any more fails the test.
package parity
