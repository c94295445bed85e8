// Package receipt verifies receipts with public keys alone: no Vault, no network.
// It is stricter than DSSE asks for. Every byte of a receipt counts, also those
// that no signature covers, so that two different files are never one receipt.
package receipt
