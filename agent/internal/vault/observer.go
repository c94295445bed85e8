package vault

import "github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"

// Observer is told what a client does, for metrics. It is called from many
// goroutines and must not block. Codes are empty where all went well.
type Observer interface {
	// VaultAnswered: a request was answered, or could not be. One that ended because
	// its caller had to stop is not told.
	VaultAnswered(code wire.Code)
	// LoggedIn: a login was tried.
	LoggedIn(code wire.Code)
	// TokenRenewed: a renewal of the agent's own token was tried.
	TokenRenewed(code wire.Code)
}

// unobserved is the observer where there is none.
type unobserved struct{}

var _ Observer = unobserved{}

func (unobserved) VaultAnswered(wire.Code) {}
func (unobserved) LoggedIn(wire.Code)      {}
func (unobserved) TokenRenewed(wire.Code)  {}

// codeOrNone is the code of a failure, and empty for a success.
func codeOrNone(err error) wire.Code {
	if err == nil {
		return ""
	}
	return CodeOf(err)
}
