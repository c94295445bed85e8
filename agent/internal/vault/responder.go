package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Responder locks a mount down and lifts it again, as the person behind the
// client's token.
type Responder struct {
	client *Client
}

// NewResponder works on the client's mount.
func NewResponder(client *Client) *Responder { return &Responder{client: client} }

// Lock locks the mount. It returns once that is stored; everything else follows in
// the background of the plugin. Rotate asks for all static and root credentials
// to be rotated too. On a mount that is locked it only adds rotation.
func (r *Responder) Lock(ctx context.Context, reason string, rotate bool) (wire.Lockdown, error) {
	body := map[string]any{"reason": reason}
	if rotate {
		body["rotate"] = true
	}
	return r.state(ctx, request{do: "lock down", method: http.MethodPut, path: r.client.mount.Lockdown(), body: body})
}

// State reads whether the mount is locked, and what is left.
func (r *Responder) State(ctx context.Context) (wire.Lockdown, error) {
	return r.state(ctx, request{do: "read the lockdown", method: http.MethodGet, path: r.client.mount.Lockdown()})
}

// Unlock lifts the lockdown, leaving behind the connections and static roles
// named.
func (r *Responder) Unlock(ctx context.Context, reason string, leave []string) (wire.Lockdown, error) {
	body := map[string]any{"reason": reason}
	if len(leave) > 0 {
		body["leave"] = leave
	}
	return r.state(ctx, request{do: "unlock", method: http.MethodPut, path: r.client.mount.Unlock(), body: body})
}

func (r *Responder) state(ctx context.Context, call request) (wire.Lockdown, error) {
	var state wire.Lockdown
	_, err := r.client.doAs(ctx, call, &state)
	return state, err
}

// revokeTimeout is how long Vault may take to revoke all leases of a mount.
const revokeTimeout = 10 * time.Minute

// RevokeLeases ends every lease of the mount and returns when Vault has done so.
func (r *Responder) RevokeLeases(ctx context.Context) error {
	_, err := r.client.doAs(ctx, request{
		do: "revoke the leases of the mount", method: http.MethodPut,
		path: "sys/leases/revoke-prefix/" + string(r.client.mount), timeout: revokeTimeout,
	}, nil)
	return err
}

// Leases counts the leases of the mount.
func (r *Responder) Leases(ctx context.Context) (int, error) {
	return r.leasesBelow(ctx, "sys/leases/lookup/"+string(r.client.mount)+"/")
}

func (r *Responder) leasesBelow(ctx context.Context, prefix string) (int, error) {
	names, err := r.names(ctx, "list leases", prefix)
	if err != nil {
		return 0, err
	}
	count := 0
	for _, name := range names {
		if !strings.HasSuffix(name, "/") {
			count++
			continue
		}
		below, err := r.leasesBelow(ctx, prefix+name)
		if err != nil {
			return 0, err
		}
		count += below
	}
	return count, nil
}

// missing reports whether err says that there is no such thing.
func missing(err error) bool { return err != nil && CodeOf(err) == wire.CodeNotFound }

// names lists what stands below a path; nothing there is no error.
func (r *Responder) names(ctx context.Context, do, path string) ([]string, error) {
	var listed struct {
		Keys []string `json:"keys"`
	}
	_, err := r.client.doAs(ctx, request{do: do, method: "LIST", path: path}, &listed)
	if missing(err) {
		return nil, nil
	}
	return listed.Keys, err
}

// Read reads one object below the mount as it is answered, with all fields this
// version does not know. It is nil where nothing is.
func (r *Responder) Read(ctx context.Context, path string) (json.RawMessage, error) {
	var data json.RawMessage
	_, err := r.client.doAs(ctx, request{do: "read " + path, method: http.MethodGet, path: string(r.client.mount) + "/" + path}, &data)
	if missing(err) {
		return nil, nil
	}
	return data, err
}

// All reads every object that a LIST of a path below the mount names.
func (r *Responder) All(ctx context.Context, path string) (map[string]json.RawMessage, error) {
	names, err := r.names(ctx, "list "+path, string(r.client.mount)+"/"+path)
	if err != nil {
		return nil, err
	}
	all := make(map[string]json.RawMessage, len(names))
	for _, name := range names {
		if strings.HasSuffix(name, "/") {
			continue
		}
		if all[name], err = r.Read(ctx, path+"/"+name); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// operationsPage is how many operations are read at once: a page must stay well
// below what Vault answers.
const operationsPage = "200"

// Operations reads all operations that changed since a time, the newest first, as
// they are answered.
func (r *Responder) Operations(ctx context.Context, since time.Time) ([]json.RawMessage, error) {
	call := request{do: "list operations", method: http.MethodGet, path: r.client.mount.AllOperations(), query: map[string][]string{"limit": {operationsPage}}}
	found := []json.RawMessage{}
	for {
		var page struct {
			Operations []json.RawMessage `json:"operations"`
			More       bool              `json:"more"`
		}
		if _, err := r.client.doAs(ctx, call, &page); err != nil {
			return nil, err
		}
		var last string
		for _, content := range page.Operations {
			var op wire.Operation
			if err := json.Unmarshal(content, &op); err != nil {
				return nil, undecodable(call.do, err)
			}
			last = op.ID
			if !op.UpdatedAt.Before(since) {
				found = append(found, content)
			}
		}
		if !page.More || last == "" {
			return found, nil
		}
		call.query["after"] = []string{last}
	}
}

// Text reads a text of an operation, its plan or report, checked against the
// digest Vault recorded; found is false when there is none.
func (r *Responder) Text(ctx context.Context, id, what string) (text string, found bool, err error) {
	text, _, err = NewOverseer(r.client).text(ctx, id, what)
	if missing(err) {
		return "", false, nil
	}
	return text, err == nil, err
}

// LeftText says in words what a lockdown has still to end; empty when nothing.
func LeftText(left *wire.LockdownLeft) string {
	if left == nil {
		return ""
	}
	var parts []string
	add := func(n int, what string) {
		if n > 0 {
			parts = append(parts, strconv.Itoa(n)+" "+what)
		}
	}
	add(left.Requests, "requests")
	add(left.Operations, "operations")
	add(left.Accounts, "accounts")
	add(len(left.Servers), "servers to search")
	add(len(left.Rotations), "credentials to rotate")
	for _, server := range left.Servers {
		if server.Reason != "" {
			parts = append(parts, fmt.Sprintf("server of %s: %s (%s)", server.Connection, server.Reason, server.Code))
		}
	}
	for _, rotation := range left.Rotations {
		if rotation.Reason != "" {
			parts = append(parts, fmt.Sprintf("rotation of %s: %s (%s)", rotation.Name, rotation.Reason, rotation.Code))
		}
	}
	return strings.Join(parts, ", ")
}
