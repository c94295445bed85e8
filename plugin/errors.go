package plugin

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// answer is the border: the only place where an error of ours becomes what
// Vault sees. Handlers return plain errors and [backend.HandleRequest] calls it
// on all of them.
//
// A [wire.Error] becomes a bare CodedError with its status, so that its text
// stands in clear in the audit device. Sentinels of the sdk go out bare, because
// one that is wrapped reaches Vault as a 500 and vault/api then repeats the
// request. Everything else is a defect or a failed storage: it is logged, and the
// caller is told no more than the code internal.
func (b *backend) answer(req *logical.Request, resp *logical.Response, err error) (*logical.Response, error) {
	if err == nil && resp.IsError() {
		err = b.validationError(req, resp)
	}
	if err == nil {
		return resp, nil
	}
	var refusal *wire.Error
	if errors.As(err, &refusal) {
		refusal = withoutPersonal(refusal)
		b.noteRefusal(req, refusal)
		b.metrics.refused(refusal)
		coded := logical.CodedError(refusal.Code.Info().HTTP, refusal.Error())
		if wait, ok := retryAfter(refusal, b.now()); ok {
			return &logical.Response{Headers: map[string][]string{"Retry-After": {wait}}}, coded
		}
		if resp != nil && len(resp.Headers) > 0 {
			// A response beside the error carries headers such as Retry-After.
			return &logical.Response{Headers: resp.Headers}, coded
		}
		return nil, coded
	}
	for _, sentinel := range sentinels() {
		if errors.Is(err, sentinel) {
			return nil, sentinel
		}
	}
	var coded logical.HTTPCodedError
	if errors.As(err, &coded) {
		return nil, logical.CodedError(coded.Code(), coded.Error())
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		gone := &wire.Error{Code: wire.CodeUnavailable, Reason: "the request ended before its work was done"}
		return nil, logical.CodedError(gone.Code.Info().HTTP, gone.Error())
	}
	b.Logger().Error("request failed", "operation", req.Operation, "path", req.Path, "error", err)
	internal := &wire.Error{Code: wire.CodeInternal, Reason: "internal error; the plugin's log says more"}
	return nil, logical.CodedError(internal.Code.Info().HTTP, internal.Error())
}

// longestRefusal bounds, in bytes, each text of a refusal.
const longestRefusal = 4096

// withoutPersonal is a refusal whose text, which stands in clear in audit devices,
// repeats nothing from the request that looks personal.
func withoutPersonal(refusal *wire.Error) *wire.Error {
	clean := *refusal
	clean.Reason, clean.Hint = readable(refusal.Reason, longestRefusal), readable(refusal.Hint, longestRefusal)
	return &clean
}

// readable is a text for others to read: no more of it than limit, since looking
// through a long one takes long, and nothing that looks personal. It is not cut
// within a word, for half an address is none to who looks for addresses.
func readable(text string, limit int) string {
	if len(text) > limit {
		text = text[:strings.LastIndexByte(text[:limit], ' ')+1] + "…"
	}
	return wire.RedactPersonal(text)
}

// longestRetryAfter bounds the header: vault/api sleeps as long as it says, so an
// hourly limit would make Terraform hang. A later time is told in the text only.
const longestRetryAfter = 10 * time.Second

// retryAfter returns the header's value, in whole seconds, for a refusal that
// passes soon.
func retryAfter(refusal *wire.Error, now time.Time) (string, bool) {
	if refusal.Code != wire.CodeRateLimited || refusal.RetryAt.IsZero() {
		return "", false
	}
	wait := refusal.RetryAt.Sub(now)
	if wait > longestRetryAfter {
		return "", false
	}
	return strconv.FormatInt(max(1, int64((wait+time.Second-1)/time.Second)), 10), true
}

// validatedField finds the name in the framework's "… for field \"ttl\": …".
var validatedField = regexp.MustCompile(`for field "([^"]+)"`)

// validationError is what the framework found wrong with a field's type. Its text
// repeats the value and would be hashed in the audit device.
func (b *backend) validationError(req *logical.Request, resp *logical.Response) error {
	refusal := &wire.Error{Code: wire.CodeInvalid, Reason: "a field has a value of the wrong type"}
	if found := validatedField.FindStringSubmatch(resp.Error().Error()); found != nil {
		refusal.Field, refusal.Reason = found[1], "the value has the wrong type"
		if path := b.Route(req.Path); path != nil && path.Fields[found[1]] != nil && path.Fields[found[1]].Type == framework.TypeDurationSecond {
			return notDuration(found[1])
		}
	}
	return refusal
}

// sentinels lists the sdk's errors that survive the way to Vault when bare.
func sentinels() []error {
	return []error{
		logical.ErrReadOnly, logical.ErrUnsupportedOperation, logical.ErrUnsupportedPath, logical.ErrInvalidRequest,
		logical.ErrPermissionDenied, logical.ErrMultiAuthzPending, logical.ErrUpstreamRateLimited,
	}
}

// invalidField refuses a request for the value of one field.
func invalidField(field, format string, args ...any) *wire.Error {
	return &wire.Error{Code: wire.CodeInvalid, Field: field, Reason: fmt.Sprintf(format, args...)}
}

// notFound says that an object the request depends on does not exist.
func notFound(format string, args ...any) *wire.Error {
	return &wire.Error{Code: wire.CodeNotFound, Reason: fmt.Sprintf(format, args...)}
}
