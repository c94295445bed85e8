package vault

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Error is a failed request. errors.As finds the *wire.Error in it; Err is the
// cause as vault/api or the network told it, for the local log.
type Error struct {
	Do     string // what was tried: "poll for work"
	Status int    // HTTP status; 0 when there was no answer
	Wire   *wire.Error
	Err    error
	bare   bool // Vault's own words: no code of the plugin was in the answer
}

// Error returns what was tried, and code and reason with all they carry.
func (e *Error) Error() string { return e.Do + ": " + e.Wire.Error() }

// Unwrap returns the coded error and the cause.
func (e *Error) Unwrap() []error { return []error{e.Wire, e.Err} }

var _ error = (*Error)(nil)

// border is the one place where an error of vault/api becomes ours.
func border(do string, err error) *Error {
	var refused *api.ResponseError
	if !errors.As(err, &refused) {
		return &Error{Do: do, Err: err, bare: true, Wire: &wire.Error{
			Code: wire.CodeUnavailable, Reason: "Vault cannot be reached: " + oneLine(err.Error()),
			Hint: "check the address, the certificate authority and the network",
		}}
	}
	for _, text := range refused.Errors {
		if coded := wire.ParseError(text); coded != nil {
			return &Error{Do: do, Status: refused.StatusCode, Wire: coded, Err: err}
		}
	}
	return &Error{Do: do, Status: refused.StatusCode, Wire: bareError(refused), Err: err, bare: true}
}

// bareError gives a code to an answer that is not the plugin's but Vault's own.
func bareError(refused *api.ResponseError) *wire.Error {
	text := oneLine(strings.Join(refused.Errors, "; "))
	switch status := refused.StatusCode; {
	case status == http.StatusForbidden:
		// Not a decision of the plugin about the operation: the way to it is shut,
		// until the session has logged in again or an operator has granted it.
		return &wire.Error{
			Code: wire.CodeUnavailable, Reason: "Vault refuses: " + text,
			Hint: "the token has ended, or its ACL policies do not grant this path",
		}
	case status == http.StatusNotFound:
		return &wire.Error{Code: wire.CodeNotFound, Reason: orWords(text, "there is nothing at this path"), Hint: "check the mount path and the name"}
	case status == http.StatusTooManyRequests:
		return &wire.Error{Code: wire.CodeUnavailable, Reason: "a quota of Vault is used up: " + text}
	case status == http.StatusPreconditionFailed, status >= http.StatusInternalServerError:
		return &wire.Error{Code: wire.CodeUnavailable, Reason: fmt.Sprintf("Vault answered %d: %s", status, orWords(text, http.StatusText(status)))}
	default:
		return &wire.Error{Code: wire.CodeInvalid, Reason: orWords(text, fmt.Sprintf("Vault answered %d", status))}
	}
}

// undecodable is an answer we cannot read: another version, or not Vault. The
// decoder's words can hold no value but a field's name and type.
func undecodable(do string, err error) *Error {
	return &Error{Do: do, Status: http.StatusOK, Err: err, Wire: &wire.Error{
		Code: wire.CodeInternal, Reason: "the answer cannot be read", Hint: "check that agent and plugin are of compatible versions",
	}}
}

// CodeOf returns the code of an error of this package, or CodeInternal.
func CodeOf(err error) wire.Code {
	var coded *wire.Error
	if errors.As(err, &coded) {
		return coded.Code
	}
	return wire.CodeInternal
}

func oneLine(text string) string {
	return strings.TrimSpace(strings.Join(strings.Fields(text), " "))
}

func orWords(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
