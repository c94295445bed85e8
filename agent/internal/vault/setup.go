package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// PluginName is the plugin's name in Vault's catalog unless said otherwise, and
// that of its binary.
const PluginName = "vault-plugin-secrets-dbops"

// Setup is what an operator wants a Vault to look like. Applying it twice does
// nothing the second time.
type Setup struct {
	// PluginName, PluginCommand and PluginSHA256 register the binary in Vault's
	// plugin directory. An empty SHA256 leaves the catalog as it is.
	PluginName    string
	PluginCommand string
	PluginSHA256  string // hex
	PluginVersion string // optional, as in "v0.1.0"; the binary must report the same

	// AuditFile, when set, enables a file audit device there if none is enabled.
	AuditFile string

	AppRolePath string // auth method, without slashes

	Agent AgentSetup
}

// AgentSetup is the identity of one agent. An empty Name means no agent.
type AgentSetup struct {
	Name        string
	Labels      map[string]string
	TokenPeriod time.Duration
	// BoundCIDRs restricts where the secret-id and its tokens may be used from.
	BoundCIDRs []string
	// WrapTTL is how long the wrapped secret-id may wait to be picked up.
	WrapTTL time.Duration
	// NewSecretID asks for a wrapped secret-id; SetupResult then holds it.
	NewSecretID bool
}

// Verb is what setup did, or would do, to an object.
type Verb string

// The verbs.
const (
	VerbKeep   Verb = "keep"
	VerbCreate Verb = "create"
	VerbUpdate Verb = "update"
	VerbWarn   Verb = "warn"
)

// Action is one thing setup did, or would do in a dry run.
type Action struct {
	Verb   Verb   `json:"verb"`
	Object string `json:"object"`
	Detail string `json:"detail,omitempty"`
	// Command is the vault command that does the same; empty when nothing is done.
	Command string `json:"command,omitempty"`
}

// SetupResult is what an agent's host needs afterwards.
type SetupResult struct {
	RoleID string
	// WrappingToken unwraps once to the agent's secret-id.
	WrappingToken wire.Secret
}

// Operator does to a Vault what its operator would do by hand. Its token needs
// the rights for that; nothing of ours is given to it.
type Operator struct {
	client *Client
	mount  string // without slashes around it
	dryRun bool
	report func(Action)
}

// NewOperator returns an operator of the client's mount that calls report for
// each action, in order, before the action is done. With dryRun it only looks.
func NewOperator(client *Client, dryRun bool, report func(Action)) *Operator {
	return &Operator{client: client, mount: string(client.mount), dryRun: dryRun, report: report}
}

// Apply makes Vault look like s. It stops at the first error; what was done
// until then stays and is kept by the next call.
func (o *Operator) Apply(ctx context.Context, s Setup) (SetupResult, error) {
	var result SetupResult
	// Auditing comes first, so that everything after it is audited.
	if err := o.auditDevice(ctx, s.AuditFile); err != nil {
		return result, err
	}
	if err := o.catalog(ctx, s); err != nil {
		return result, err
	}
	if err := o.enable(ctx, s); err != nil {
		return result, err
	}
	accessor, err := o.appRole(ctx, s.AppRolePath)
	if err != nil {
		return result, err
	}
	for _, duty := range Duties() {
		if err := o.policy(ctx, duty, accessor); err != nil {
			return result, err
		}
	}
	if s.Agent.Name == "" {
		return result, nil
	}
	return o.agent(ctx, s, accessor)
}

// apply reports an action and, unless this is a dry run, sends the request that
// does it.
func (o *Operator) apply(ctx context.Context, a Action, path string, body any) error {
	o.report(a)
	if o.dryRun {
		return nil
	}
	_, err := o.client.doAs(ctx, request{
		do: string(a.Verb) + " " + a.Object, method: http.MethodPut, path: path, body: body,
		// Vault starts a plugin to look at it when it is registered, mounted or
		// reloaded.
		timeout: time.Minute,
	}, nil)
	return err
}

// read decodes what is at path into out; found is false when nothing is.
func (o *Operator) read(ctx context.Context, what, path string, out any) (found bool, err error) {
	_, err = o.client.doAs(ctx, request{do: "read " + what, method: http.MethodGet, path: path}, out)
	var refused *Error
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return false, nil
	}
	return err == nil, err
}

func (o *Operator) keep(object, detail string) {
	o.report(Action{Verb: VerbKeep, Object: object, Detail: detail})
}

// auditDevice makes sure that somebody sees what happens here.
func (o *Operator) auditDevice(ctx context.Context, file string) error {
	var devices map[string]struct{}
	if _, err := o.read(ctx, "audit devices", "sys/audit", &devices); err != nil {
		return err
	}
	if len(devices) > 0 {
		o.keep("audit devices", strings.Join(slices.Sorted(maps.Keys(devices)), ", "))
		return nil
	}
	if file == "" {
		o.report(Action{
			Verb: VerbWarn, Object: "audit devices",
			Detail:  "none is enabled: agents start no operation until one is",
			Command: "vault audit enable file file_path=/var/log/vault/audit.log",
		})
		return nil
	}
	return o.apply(ctx, Action{
		Verb: VerbCreate, Object: "audit device file/", Detail: file,
		Command: "vault audit enable file file_path=" + file,
	}, "sys/audit/file", map[string]any{"type": "file", "options": map[string]string{"file_path": file}})
}

// catalog registers the binary, or leaves the catalog alone when it already
// names that binary.
func (o *Operator) catalog(ctx context.Context, s Setup) error {
	if s.PluginSHA256 == "" {
		return nil
	}
	object, path := "plugin "+s.PluginName, "sys/plugins/catalog/secret/"+s.PluginName
	registered, same, err := o.registered(ctx, s)
	if err != nil {
		return err
	}
	if same {
		o.keep(object, "sha256 "+s.PluginSHA256)
		return nil
	}
	verb := VerbCreate
	if registered {
		verb = VerbUpdate
	}
	body := map[string]string{"sha256": s.PluginSHA256, "command": s.PluginCommand}
	command := fmt.Sprintf("vault plugin register -sha256=%s -command=%s", s.PluginSHA256, s.PluginCommand)
	if s.PluginVersion != "" {
		body["version"] = s.PluginVersion
		command += " -version=" + s.PluginVersion
	}
	err = o.apply(ctx, Action{
		Verb: verb, Object: object, Detail: "sha256 " + s.PluginSHA256, Command: command + " secret " + s.PluginName,
	}, path, body)
	if err != nil || verb == VerbCreate {
		return err
	}
	// Mounts go on running the old binary until they are reloaded.
	return o.apply(ctx, Action{
		Verb: VerbUpdate, Object: "running " + object, Detail: "reload",
		Command: "vault plugin reload -plugin=" + s.PluginName,
	}, "sys/plugins/reload/backend", map[string]string{"plugin": s.PluginName})
}

// registered tells whether the catalog has the plugin, and whether it has this
// binary of it. A plugin registered without a version stands there under the one
// it reports.
func (o *Operator) registered(ctx context.Context, s Setup) (some, same bool, err error) {
	type entry struct {
		Type    string `json:"type"`
		Name    string `json:"name"`
		Version string `json:"version"`
		SHA256  string `json:"sha256"`
		Command string `json:"command"`
	}
	var catalog struct {
		Detailed []entry `json:"detailed"`
	}
	if _, err := o.read(ctx, "plugin catalog", "sys/plugins/catalog", &catalog); err != nil {
		return false, false, err
	}
	for _, found := range catalog.Detailed {
		if found.Type != "secret" || found.Name != s.PluginName || s.PluginVersion != "" && found.Version != s.PluginVersion {
			continue
		}
		some = true
		if found.SHA256 != s.PluginSHA256 {
			continue
		}
		// The list does not tell the program's name.
		call := request{do: "read plugin catalog", method: http.MethodGet, path: "sys/plugins/catalog/secret/" + s.PluginName}
		if found.Version != "" {
			call.query = map[string][]string{"version": {found.Version}}
		}
		if _, err := o.client.doAs(ctx, call, &found); err != nil {
			return false, false, err
		}
		if found.Command == s.PluginCommand {
			return true, true, nil
		}
	}
	return some, false, nil
}

// mountInfo is what sys/mounts and sys/auth tell of one mount.
type mountInfo struct {
	Type          string `json:"type"`
	Accessor      string `json:"accessor"`
	PluginVersion string `json:"plugin_version"`
	Config        struct {
		AuditNonHMACRequestKeys  []string `json:"audit_non_hmac_request_keys"`
		AuditNonHMACResponseKeys []string `json:"audit_non_hmac_response_keys"`
	} `json:"config"`
}

// enable mounts the engine, or tunes the mount that is there so that audit
// devices show what they must.
func (o *Operator) enable(ctx context.Context, s Setup) error {
	object := "mount " + o.mount + "/"
	var mounts map[string]mountInfo
	if _, err := o.read(ctx, "mounts", "sys/mounts", &mounts); err != nil {
		return err
	}
	requestKeys, responseKeys := wire.AuditNonHMACRequestKeys(), wire.AuditNonHMACResponseKeys()
	current, mounted := mounts[o.mount+"/"]
	if !mounted {
		config := map[string]any{
			"audit_non_hmac_request_keys": requestKeys, "audit_non_hmac_response_keys": responseKeys,
		}
		flags := auditKeyFlags(requestKeys, responseKeys)
		if s.PluginVersion != "" {
			config["plugin_version"] = s.PluginVersion
			flags += " -plugin-version=" + s.PluginVersion
		}
		return o.apply(ctx, Action{
			Verb: VerbCreate, Object: object, Detail: "type " + s.PluginName,
			Command: "vault secrets enable -path=" + o.mount + flags + " " + s.PluginName,
		}, "sys/mounts/"+o.mount, map[string]any{
			"type": s.PluginName, "description": "dbops: database operations without standing passwords", "config": config,
		})
	}
	if current.Type != s.PluginName {
		return &wire.Error{
			Code:   wire.CodeConflict,
			Reason: fmt.Sprintf("%s is of type %s, not %s", object, current.Type, s.PluginName),
			Hint:   "choose another path with -mount, or name the plugin with -plugin-name",
		}
	}
	// Keys somebody added by hand are kept: no secret stands under any of ours,
	// and theirs are theirs to judge.
	haveRequest, haveResponse := current.Config.AuditNonHMACRequestKeys, current.Config.AuditNonHMACResponseKeys
	wantRequest, wantResponse := union(haveRequest, requestKeys), union(haveResponse, responseKeys)
	wantRequest = slices.DeleteFunc(wantRequest, func(key string) bool { return slices.Contains(wire.AuditHMACRequestKeys(), key) })
	upgrade := s.PluginVersion != "" && current.PluginVersion != s.PluginVersion
	if slices.Equal(wantRequest, haveRequest) && slices.Equal(wantResponse, haveResponse) && !upgrade {
		o.keep(object, "")
		return nil
	}
	body := map[string]any{"audit_non_hmac_request_keys": wantRequest, "audit_non_hmac_response_keys": wantResponse}
	flags, detail := auditKeyFlags(wantRequest, wantResponse), "what audit devices show"
	if upgrade {
		body["plugin_version"] = s.PluginVersion
		flags += " -plugin-version=" + s.PluginVersion
		detail = "version " + s.PluginVersion
	}
	err := o.apply(ctx, Action{
		Verb: VerbUpdate, Object: object, Detail: "tune " + detail,
		Command: "vault secrets tune" + flags + " " + o.mount + "/",
	}, "sys/mounts/"+o.mount+"/tune", body)
	if err != nil || !upgrade {
		return err
	}
	return o.apply(ctx, Action{
		Verb: VerbUpdate, Object: "running " + object, Detail: "reload",
		Command: "vault plugin reload -mounts=" + o.mount + "/",
	}, "sys/plugins/reload/backend", map[string]string{"mounts": o.mount + "/"})
}

func auditKeyFlags(request, response []string) string {
	var b strings.Builder
	for _, key := range request {
		b.WriteString(" -audit-non-hmac-request-keys=" + key)
	}
	for _, key := range response {
		b.WriteString(" -audit-non-hmac-response-keys=" + key)
	}
	return b.String()
}

// TuneCommand is the command that makes audit devices show what they must of a
// mount; README and messages quote it.
func TuneCommand(mount wire.Mount) string {
	return "vault secrets tune" + auditKeyFlags(wire.AuditNonHMACRequestKeys(), wire.AuditNonHMACResponseKeys()) +
		" " + strings.Trim(string(mount), "/") + "/"
}

// union returns have followed by those of want it lacks.
func union(have, want []string) []string {
	all := slices.Clone(have)
	for _, key := range want {
		if !slices.Contains(all, key) {
			all = append(all, key)
		}
	}
	return all
}

// unknownAccessor stands for one that exists only once a dry run was a real one.
const unknownAccessor = "<accessor>"

// AuthAccessor returns the accessor of the auth method at path.
func (o *Operator) AuthAccessor(ctx context.Context, path string) (accessor string, found bool, err error) {
	var methods map[string]mountInfo
	if _, err := o.read(ctx, "auth methods", "sys/auth", &methods); err != nil {
		return "", false, err
	}
	method, found := methods[path+"/"]
	if found && method.Type != "approle" {
		return "", false, &wire.Error{
			Code: wire.CodeConflict, Reason: fmt.Sprintf("auth method %s/ is of type %s, not approle", path, method.Type),
			Hint: "choose another path with -approle-path",
		}
	}
	return method.Accessor, found, nil
}

// appRole enables the auth method agents log in with and returns its accessor.
func (o *Operator) appRole(ctx context.Context, path string) (string, error) {
	object := "auth method " + path + "/"
	accessor, found, err := o.AuthAccessor(ctx, path)
	if err != nil {
		return "", err
	}
	if found {
		o.keep(object, "accessor "+accessor)
		return accessor, nil
	}
	err = o.apply(ctx, Action{
		Verb: VerbCreate, Object: object, Command: "vault auth enable -path=" + path + " approle",
	}, "sys/auth/"+path, map[string]string{"type": "approle"})
	if err != nil || o.dryRun {
		return unknownAccessor, err
	}
	accessor, found, err = o.AuthAccessor(ctx, path)
	if err == nil && !found {
		err = fmt.Errorf("%s is gone right after it was enabled", object)
	}
	return accessor, err
}

func (o *Operator) policy(ctx context.Context, duty Duty, accessor string) error {
	name, path := duty.PolicyName(wire.Mount(o.mount)), "sys/policies/acl/"
	text, err := ACLPolicy(duty, wire.Mount(o.mount), accessor)
	if err != nil {
		return err
	}
	var current struct {
		Policy string `json:"policy"`
	}
	found, err := o.read(ctx, "policy "+name, path+name, &current)
	if err != nil {
		return err
	}
	// Vault trims what it stores.
	if found && strings.TrimSpace(current.Policy) == strings.TrimSpace(text) {
		o.keep("policy "+name, "")
		return nil
	}
	verb := VerbCreate
	if found {
		verb = VerbUpdate
	}
	if found && ofAnotherMount(current.Policy, name, wire.Mount(o.mount)) {
		return &wire.Error{
			Code: wire.CodeConflict, Reason: fmt.Sprintf("policy %s is that of another mount of dbops, and whoever has it would get the rights of this one", name),
			Hint: "mount it under another path: names of policies are made of the mount's and the duty's",
		}
	}
	acl := "dbops acl -mount=" + o.mount
	if duty == DutyAgent {
		// Only this one depends on the Vault it is written to.
		acl += " -accessor=" + accessor
	}
	return o.apply(ctx, Action{
		Verb: verb, Object: "policy " + name, Command: fmt.Sprintf("%s %s | vault policy write %s -", acl, duty, name),
	}, path+name, map[string]string{"policy": text})
}
