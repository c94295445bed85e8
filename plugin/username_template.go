package plugin

import (
	"fmt"
	"maps"
	"regexp"
	"strings"

	"github.com/hashicorp/go-secure-stdlib/base62"
	"github.com/hashicorp/vault/sdk/helper/template"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// usernameData is what a username_template may use. The first two are those of
// Vault's engine; all its functions are there too.
type usernameData struct {
	DisplayName string
	RoleName    string
	// MountID lets logins of a custom template be recognised as this mount's.
	MountID string
	// EntityID and EntityName are empty for a token without an entity.
	EntityID       string
	EntityName     string
	EntityMetadata map[string]string
	// Aliases are the entity's by the accessor of their auth mount:
	// {{.Aliases.auth_userpass_1a2b3c.Name}}, {{.Aliases.auth_oidc_4d5e.Metadata.team}}.
	// What a caller does not have is empty.
	Aliases map[string]usernameAlias
}

// usernameAlias is one alias of the caller's entity.
type usernameAlias struct {
	Name           string
	Metadata       map[string]string
	CustomMetadata map[string]string
}

// cut returns the data with each text of the caller shortened to n characters.
func (d usernameData) cut(n int) usernameData {
	d.DisplayName, d.RoleName = firstRunes(d.DisplayName, n), firstRunes(d.RoleName, n)
	d.EntityName, d.EntityID = firstRunes(d.EntityName, n), firstRunes(d.EntityID, n)
	d.EntityMetadata = cutAll(d.EntityMetadata, n)
	aliases := make(map[string]usernameAlias, len(d.Aliases))
	for accessor, alias := range d.Aliases {
		aliases[accessor] = usernameAlias{
			Name: firstRunes(alias.Name, n), Metadata: cutAll(alias.Metadata, n), CustomMetadata: cutAll(alias.CustomMetadata, n),
		}
	}
	d.Aliases = aliases
	return d
}

func cutAll(texts map[string]string, n int) map[string]string {
	short := maps.Clone(texts)
	for key, text := range short {
		short[key] = firstRunes(text, n)
	}
	return short
}

func firstRunes(text string, n int) string {
	for at := range text {
		if n == 0 {
			return text[:at]
		}
		n--
	}
	return text
}

// usernameTemplate is a parsed username_template. It remembers what its random
// parts were, so it is used by one request only.
type usernameTemplate struct {
	parsed  template.StringTemplate
	uuid    bool
	randoms []string
}

// mostRandom is the longest random part. No server takes a name of that length, and
// a typing error must not use up the memory.
const mostRandom = 256

// parseUsernameTemplate refuses a template that can never be used.
func parseUsernameTemplate(text string) (*usernameTemplate, error) {
	t := &usernameTemplate{uuid: strings.Contains(text, "uuid")}
	random := func(length int) (string, error) {
		if length < 0 || length > mostRandom {
			return "", fmt.Errorf("random takes 0 to %d, not %d", mostRandom, length)
		}
		made, err := base62.Random(length)
		t.randoms = append(t.randoms, made)
		return made, err
	}
	var err error
	t.parsed, err = template.NewTemplate(template.Template(text), template.Function("random", random))
	if err != nil {
		return nil, invalidField("username_template", "cannot be parsed: %s", err)
	}
	_, err = t.once(usernameData{DisplayName: "token", RoleName: "role", MountID: "mount", EntityID: "id", EntityName: "entity"})
	return t, err
}

// once makes a name without looking at it.
func (t *usernameTemplate) once(data usernameData) (string, error) {
	t.randoms = t.randoms[:0]
	name, err := t.parsed.Generate(data)
	if err != nil {
		return "", invalidField("username_template", "cannot be used: %s", err)
	}
	// What text/template prints for a key of metadata that is not there.
	return strings.ReplaceAll(name, "<no value>", ""), nil
}

// usernameCuts are the lengths to which texts of the caller are shortened, one
// after the other, until the name fits and its random part is whole.
func usernameCuts() []int { return []int{64, 48, 32, 24, 16, 12, 10, 8, 6, 5, 4, 3, 2, 1, 0} }

// name makes a name that the server takes as it is. What the template says about
// random parts is kept to: where the name would be too long, or the template cuts
// it, the caller's texts get shorter instead.
func (t *usernameTemplate) name(data usernameData, rule usernameRule) (string, error) {
	name, err := t.once(data)
	if err != nil {
		return "", err
	}
	if rule.fits(name) && t.whole(name) {
		return name, nil
	}
	tooLong, fits := name, rule.fits(name)
	for _, n := range usernameCuts() {
		if name, err = t.once(data.cut(n)); err != nil {
			return "", err
		}
		if !rule.fits(name) {
			continue
		}
		fits = true
		if t.whole(name) {
			return name, nil
		}
	}
	// The random part may have been hashed or replaced. Then names made of the
	// same differ all the same.
	for _, n := range usernameCuts() {
		if name, err = t.once(data.cut(n)); err != nil {
			return "", err
		}
		other, err := t.once(data.cut(n))
		if err != nil {
			return "", err
		}
		if rule.fits(name) && different(name, other) >= leastRandom {
			return name, nil
		}
	}
	if fits {
		return "", &wire.Error{
			Code: wire.CodeInvalid, Field: "username_template", Reason: "cuts off the random part that makes names unique",
			Hint: "truncate the other parts, not the whole name",
		}
	}
	return "", &wire.Error{
		Code: wire.CodeInvalid, Field: "username_template",
		Reason: fmt.Sprintf("made a name of %d bytes; the server takes %s, and beyond lies what makes it unique", len(tooLong), rule),
		Hint:   "shorten the fixed parts",
	}
}

// leastRandom is how many characters of a hashed random part must be left.
const leastRandom = 12

// different counts the places at which two names differ.
func different(a, b string) int {
	n := max(len(a), len(b)) - min(len(a), len(b))
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// wholeUUID finds what the function uuid makes, in any case.
var wholeUUID = regexp.MustCompile(`(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

// whole reports whether all random parts stand in the name. A template without
// any is left to whoever wrote it.
func (t *usernameTemplate) whole(name string) bool {
	lower := strings.ToLower(name)
	for _, random := range t.randoms {
		if !strings.Contains(lower, strings.ToLower(random)) {
			return false
		}
	}
	return !t.uuid || wholeUUID.MatchString(name)
}

// usernameIdentity adds what Vault knows of the caller, if the template asks.
func (b *backend) usernameIdentity(text, entityID string, data *usernameData) error {
	data.EntityID = entityID
	if entityID == "" || !strings.Contains(text, ".Entity") && !strings.Contains(text, ".Aliases") {
		return nil
	}
	entity, err := b.System().EntityInfo(entityID)
	if err != nil {
		return fmt.Errorf("read entity: %w", err)
	}
	if entity == nil || entity.Disabled {
		return noIdentity("the token's entity does not exist any more or is disabled")
	}
	data.EntityName, data.EntityMetadata = entity.Name, entity.Metadata
	data.Aliases = make(map[string]usernameAlias, len(entity.Aliases))
	for _, alias := range entity.Aliases {
		data.Aliases[alias.MountAccessor] = usernameAlias{Name: alias.Name, Metadata: alias.Metadata, CustomMetadata: alias.CustomMetadata}
	}
	return nil
}
