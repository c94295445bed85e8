// Package auditlog reads what Vault's file audit devices wrote and says which of
// it is ours: which events and facts are genuine, which are forged, missing,
// altered or out of place, and where.
//
// Nothing but the files and the [Anchors] read from Vault is believed. Files are
// streamed and merged by time, so rotated files, the files of several nodes and
// those of several devices may be given together, in any order, and any size: what
// is remembered is bounded per chain.
package auditlog
