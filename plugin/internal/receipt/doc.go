// Package receipt makes receipts: in-toto statements in DSSE envelopes, signed
// with ed25519 keys. It does no I/O; the same facts and key give the same bytes.
// Verifying is the business of whoever was given a receipt and a public key; the
// dbops program does it without Vault.
package receipt
