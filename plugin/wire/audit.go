package wire

// AuditTuning is the setting of a mount that AuditNonHMACRequestKeys belong in.
const AuditTuning = "audit_non_hmac_request_keys"

// AuditNonHMACRequestKeys are the request keys that the mount must be tuned to
// show in clear in audit devices (audit_non_hmac_request_keys). README, dbops
// setup and tests take them from here. No key under which a secret or row data
// can stand may be added.
func AuditNonHMACRequestKeys() []string {
	return []string{EventsKey, "fence", "outcome", "code", "plan_digest"}
}

// AuditHMACRequestKeys are request keys that dbops setup hides again, where an
// earlier version showed them: people write a reason and a request_id, which may hold
// personal values, and the plugin answers them without those.
func AuditHMACRequestKeys() []string { return []string{"reason", "request_id"} }

// AuditNonHMACResponseKeys are the same for responses.
func AuditNonHMACResponseKeys() []string {
	return []string{"error", "id", "state", "reason", "request_id", "comment", "username", "plan_digest", "shape_digest", "epoch", "seq", "head", FactsKey}
}
