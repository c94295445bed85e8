package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// helloBody is the body of hello.
type helloBody struct {
	Version int               `json:"version"`
	Engines []wire.EngineType `json:"engines"`
}

// openBody is the body of open, the one message with secrets.
type openBody struct {
	Accounts map[wire.Side]openAccount `json:"accounts"`
}

// openAccount is a [wire.Account] whose password is encoded. Only this file
// turns one into the other.
type openAccount struct {
	Endpoint wire.Endpoint `json:"endpoint"`
	Username string        `json:"username"`
	Password clearText     `json:"password"`
}

// clearText is a password on its way. Its box opens for encoding/json alone.
type clearText struct{ secret wire.Secret }

func (c clearText) String() string   { return c.secret.String() }
func (c clearText) GoString() string { return c.secret.GoString() }

func (c clearText) MarshalJSON() ([]byte, error) { return json.Marshal(c.secret.Reveal()) }

func (c *clearText) UnmarshalJSON(content []byte) error {
	var value string
	if err := json.Unmarshal(content, &value); err != nil {
		return errors.New("password is not a string") // the cause may quote it
	}
	c.secret = wire.NewSecret(value)
	return nil
}

func newOpenBody(accounts map[wire.Side]wire.Account) openBody {
	body := openBody{Accounts: make(map[wire.Side]openAccount, len(accounts))}
	for side, account := range accounts {
		body.Accounts[side] = openAccount{
			Endpoint: account.Endpoint, Username: account.Username, Password: clearText{account.Password},
		}
	}
	return body
}

// inspectBody is the body of inspect.
type inspectBody struct {
	Side wire.Side `json:"side"`
}

// RunRequest is an operation to run. Shape is the approved one, byte for byte.
type RunRequest struct {
	OperationID string            `json:"operation_id"`
	Options     map[string]string `json:"options,omitempty"`
	Shape       json.RawMessage   `json:"-"`
	MaxRows     int64             `json:"max_rows,omitempty"`  // 0: no limit
	MaxBytes    int64             `json:"max_bytes,omitempty"` // 0: no limit
}

// cleanupBody is the body of cleanup.
type cleanupBody struct {
	OperationID string `json:"operation_id"`
}

// stepBody is the body of begin and end; raw holds begin's detail.
type stepBody struct {
	Step  wire.Step `json:"step"`
	Rows  int64     `json:"rows,omitempty"`
	Bytes int64     `json:"bytes,omitempty"`
}

// errorBody is the body of error, and of an answer that refuses.
type errorBody struct {
	Step   wire.Step `json:"step,omitempty"`
	Code   wire.Code `json:"code,omitempty"` // empty in an answer: yes
	Reason string    `json:"reason,omitempty"`
	Hint   string    `json:"hint,omitempty"`
}

// newErrorBody takes what may cross from err. An error without a code is told by
// its type alone, for its text may quote rows. Step is where it happened when err
// does not say.
func newErrorBody(err error, step wire.Step) errorBody {
	var known *operation.Error
	switch {
	case errors.As(err, &known):
		if known.Step != "" {
			step = known.Step
		}
		return errorBody{Step: step, Code: known.Code, Reason: known.Reason, Hint: known.Hint}
	case errors.Is(err, context.Canceled):
		return errorBody{Step: step, Code: wire.CodeCancelled, Reason: "cancelled"}
	case errors.Is(err, context.DeadlineExceeded):
		return errorBody{Step: step, Code: wire.CodeDeadline, Reason: "took longer than allowed"}
	default:
		return errorBody{Step: step, Code: wire.CodeInternal, Reason: fmt.Sprintf("unexpected error of type %T", err)}
	}
}

// error makes the body of the other side an error: an unknown code or step is
// ours to replace, for both go into events and answers.
func (b errorBody) error(step wire.Step) *operation.Error {
	e := &operation.Error{Step: b.Step, Code: b.Code, Reason: plain(b.Reason), Hint: plain(b.Hint)}
	if !e.Code.Valid() {
		e.Code = wire.CodeInternal
	}
	if !known(e.Step) {
		e.Step = step
	}
	return e
}

func known(step wire.Step) bool { return slices.Contains(wire.Steps(), step) }
