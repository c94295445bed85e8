package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// agent makes the identity of one agent: an AppRole of its name, and the
// engine's record that binds the two.
func (o *Operator) agent(ctx context.Context, s Setup, accessor string) (SetupResult, error) {
	var result SetupResult
	if !wire.ValidAgentName(s.Agent.Name) {
		return result, &wire.Error{
			Code: wire.CodeUsage, Reason: fmt.Sprintf("agent name %q", s.Agent.Name), Field: "agent",
			Hint: "an agent's name is " + wire.AgentNamePattern,
		}
	}
	if err := o.agentRole(ctx, s); err != nil {
		return result, err
	}
	if err := o.agentRecord(ctx, s, accessor); err != nil {
		return result, err
	}
	role := rolePath(s)
	secretID := Action{
		Verb: VerbCreate, Object: "secret-id of approle " + s.Agent.Name, Detail: "one use, wrapped for " + s.Agent.WrapTTL.String(),
		Command: fmt.Sprintf("vault write -wrap-ttl=%s -f %s/secret-id", s.Agent.WrapTTL, role),
	}
	if o.dryRun {
		if s.Agent.NewSecretID {
			o.report(secretID)
		}
		return result, nil
	}
	var answer struct {
		RoleID string `json:"role_id"`
	}
	if _, err := o.read(ctx, "role-id of approle "+s.Agent.Name, role+"/role-id", &answer); err != nil {
		return result, err
	}
	result.RoleID = answer.RoleID
	if !s.Agent.NewSecretID {
		return result, nil
	}
	o.report(secretID)
	// Wrapped, nobody on the way sees it: Vault gives out a token that unwraps to
	// it once.
	wrapped, err := o.client.doAs(ctx, request{
		do: "create " + secretID.Object, method: http.MethodPut, path: role + "/secret-id", wrapTTL: s.Agent.WrapTTL,
	}, nil)
	if err != nil {
		return result, err
	}
	if wrapped.WrapInfo == nil || wrapped.WrapInfo.Token.Empty() {
		return result, errors.New("vault answered without a wrapping token")
	}
	result.WrappingToken = wrapped.WrapInfo.Token.Secret
	return result, nil
}

func rolePath(s Setup) string { return "auth/" + s.AppRolePath + "/role/" + s.Agent.Name }

// agentRole writes the AppRole when one of its settings differs. Settings we
// have no opinion on are left alone.
func (o *Operator) agentRole(ctx context.Context, s Setup) error {
	role := rolePath(s)
	want := []struct{ key, value string }{
		// Batch tokens cannot be renewed; periodic service tokens live as long as
		// the agent renews them, without a maximum.
		{"token_type", "service"},
		{"token_period", strconv.Itoa(int(s.Agent.TokenPeriod.Seconds()))},
		{"token_max_ttl", "0"},
		{"token_policies", DutyAgent.PolicyName(wire.Mount(o.mount))},
		{"token_no_default_policy", "true"},
		{"bind_secret_id", "true"},
		{"secret_id_num_uses", "1"},
		{"secret_id_ttl", strconv.Itoa(int(s.Agent.WrapTTL.Seconds()))},
		{"secret_id_bound_cidrs", strings.Join(s.Agent.BoundCIDRs, ",")},
		{"token_bound_cidrs", strings.Join(hostsBare(s.Agent.BoundCIDRs), ",")},
	}
	var current map[string]any
	found, err := o.read(ctx, "approle "+s.Agent.Name, role, &current)
	if err != nil {
		return err
	}
	verb, body, command := VerbCreate, map[string]string{}, "vault write "+role
	var differs []string
	if found {
		verb = VerbUpdate
	}
	for _, setting := range want {
		body[setting.key] = setting.value
		command += " " + setting.key + "=" + strconv.Quote(setting.value)
		if found && settingText(current[setting.key]) != setting.value {
			differs = append(differs, setting.key)
		}
	}
	if found && len(differs) == 0 {
		o.keep("approle "+s.Agent.Name, "")
		return nil
	}
	return o.apply(ctx, Action{
		Verb: verb, Object: "approle " + s.Agent.Name, Detail: strings.Join(differs, ", "), Command: command,
	}, role, body)
}

// hostsBare writes networks of one host without a mask, as Vault answers them for
// tokens.
func hostsBare(cidrs []string) []string {
	bare := make([]string, 0, len(cidrs))
	for _, cidr := range cidrs {
		if prefix, err := netip.ParsePrefix(cidr); err == nil && prefix.IsSingleIP() {
			cidr = prefix.Addr().String()
		}
		bare = append(bare, cidr)
	}
	return bare
}

// settingText is a value of an answer in the form it is written in.
func settingText(value any) string {
	switch v := value.(type) {
	case nil:
		return ""
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case []any:
		items := make([]string, 0, len(v))
		for _, item := range v {
			items = append(items, settingText(item))
		}
		return strings.Join(items, ",")
	default:
		return fmt.Sprint(v)
	}
}

// agentRecord registers the agent with the engine.
func (o *Operator) agentRecord(ctx context.Context, s Setup, accessor string) error {
	object, path := "agent "+s.Agent.Name, o.mount+"/agents/"+s.Agent.Name
	var current map[string]any
	// In a dry run the mount may not be there yet, which reads as not found.
	found, err := o.read(ctx, object, path, &current)
	if err != nil {
		return err
	}
	verb := VerbCreate
	if found {
		if settingText(current["accessor"]) == accessor && equalLabels(current["labels"], s.Agent.Labels) {
			o.keep(object, "")
			return nil
		}
		verb = VerbUpdate
	}
	body := map[string]any{"accessor": accessor}
	command := fmt.Sprintf("vault write %s accessor=%s", path, accessor)
	if len(s.Agent.Labels) > 0 {
		body["labels"] = s.Agent.Labels
		for _, key := range slices.Sorted(maps.Keys(s.Agent.Labels)) {
			command += " labels=" + key + "=" + s.Agent.Labels[key]
		}
	}
	return o.apply(ctx, Action{Verb: verb, Object: object, Command: command}, path, body)
}

// equalLabels compares labels of an answer with wanted ones; none wanted means
// no opinion.
func equalLabels(have any, want map[string]string) bool {
	if len(want) == 0 {
		return true
	}
	labels, ok := have.(map[string]any)
	if !ok || len(labels) != len(want) {
		return false
	}
	for key, value := range want {
		if settingText(labels[key]) != value {
			return false
		}
	}
	return true
}
