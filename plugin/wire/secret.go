package wire

import "errors"

const redacted = "<redacted>"

// Secret is a password or another value that must never be printed. Formatting,
// logging and encoding/json show a placeholder; [Secret.Reveal] is the only way
// to the value. A plain string type with a String method would leak under %#v,
// in JSON and in hclog; the box does not, since the value is behind a pointer
// that no encoder follows.
//
// The zero value is an empty secret.
type Secret struct {
	value *string
}

// NewSecret boxes value.
func NewSecret(value string) Secret { return Secret{value: &value} }

// Reveal returns the value. Call it at the last moment, into a local that does
// not escape.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// Empty reports whether there is no value.
func (s Secret) Empty() bool { return s.value == nil || *s.value == "" }

// String redacts.
func (s Secret) String() string { return redacted }

// GoString redacts.
func (s Secret) GoString() string { return redacted }

// MarshalText redacts: a secret is never encoded by accident.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText refuses: secrets are put in place by [NewSecret] only, so that
// a redacted text is never taken for a value.
func (s *Secret) UnmarshalText([]byte) error {
	return errors.New("wire.Secret cannot be decoded from text")
}
