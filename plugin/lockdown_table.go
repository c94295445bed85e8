package plugin

import (
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// lockdownRule says which operations of one path a lockdown lets through and
// which it refuses. Together they are all that the path serves.
type lockdownRule struct {
	allowed, refused []logical.Operation
}

// Shorthands of the table.
var (
	opsNone   []logical.Operation
	opsRead   = []logical.Operation{logical.ReadOperation}
	opsList   = []logical.Operation{logical.ListOperation}
	opsUpdate = []logical.Operation{logical.UpdateOperation}
	opsLook   = []logical.Operation{logical.ReadOperation, logical.ListOperation}
	// opsChange are those of a path that changes without telling new from old.
	opsChange = []logical.Operation{logical.UpdateOperation, logical.DeleteOperation}
	opsWrite  = []logical.Operation{logical.CreateOperation, logical.UpdateOperation, logical.DeleteOperation}
)

// lockdownTable is what a locked mount does, path by path as [readablePath] names
// them. What gives, begins or changes anything is refused; what shows, stops or
// ends something goes on. A path that is missing here is refused altogether, and
// a test fails.
var lockdownTable = map[string]lockdownRule{
	"lockdown":             {slices.Concat(opsRead, opsUpdate), opsNone},
	"lockdown/break-glass": {opsRead, opsChange},
	"unlock":               {opsUpdate, opsNone},
	"info":                 {opsRead, opsNone},
	"settings":             {opsRead, opsUpdate},

	"config":                  {opsList, opsNone},
	"config/:name":            {opsRead, opsWrite},
	"connections":             {opsList, opsNone},
	"connections/:name":       {opsRead, opsChange},
	"roles":                   {opsList, opsNone},
	"roles/:name":             {opsRead, opsWrite},
	"static-roles":            {opsList, opsNone},
	"static-roles/:name":      {opsRead, opsWrite},
	"policies":                {opsList, opsNone},
	"policies/:name":          {opsRead, opsChange},
	"policies/:name/evaluate": {slices.Concat(opsRead, opsUpdate), opsNone}, // changes nothing

	"creds/:name":         {opsNone, opsRead},
	"static-creds/:name":  {opsNone, opsRead},
	"rotate-role/:name":   {opsNone, opsUpdate}, // rotate=true of lockdown does it
	"rotate-root/:name":   {opsNone, opsUpdate},
	"rotate-all/:name":    {opsNone, opsUpdate},
	"reset/:name":         {opsNone, opsUpdate},
	"reload/:plugin_name": {opsNone, opsUpdate},

	"clone/:source/:target":   {opsNone, opsUpdate},
	"merge/:source/:target":   {opsNone, opsUpdate},
	"migrate/:source/:target": {opsNone, opsUpdate},
	"backup/:source":          {opsNone, opsUpdate},
	"restore/:backup/:target": {opsNone, opsUpdate},

	"operations":                     {opsLook, opsNone},
	"operations/:id":                 {opsRead, opsNone},
	"operations/:id/plan":            {opsRead, opsNone},
	"operations/:id/report":          {opsRead, opsNone},
	"operations/:id/receipt":         {opsRead, opsNone},
	"operations/:id/cancel":          {opsUpdate, opsNone},
	"operations/:id/approve":         {opsNone, opsUpdate},
	"operations/:id/reject":          {opsUpdate, opsNone}, // stops
	"all/operations":                 {opsLook, opsNone},
	"all/operations/:id":             {opsRead, opsNone},
	"all/operations/:id/plan":        {opsRead, opsNone},
	"all/operations/:id/report":      {opsRead, opsNone},
	"all/operations/:id/receipt":     {opsRead, opsNone},
	"all/operations/:id/cancel":      {opsUpdate, opsNone},
	"all/operations/:id/acknowledge": {opsNone, opsUpdate}, // it lets the record go
	"chains":                         {opsRead, opsNone},
	"facts":                          {opsRead, opsNone},
	"facts/ack":                      {opsUpdate, opsNone},
	"keys":                           {opsRead, opsNone},
	"keys/rotate":                    {opsNone, opsUpdate},
	"metrics":                        {opsRead, opsNone},
	"posture":                        {opsRead, opsNone},
	"posture/:name":                  {opsRead, opsNone},
	"revocations":                    {opsList, opsNone},
	"revocations/:id":                {opsRead, opsNone},

	"agents":                           {opsList, opsNone},
	"agents/:name":                     {opsRead, opsChange},
	"agents/:name/facts":               {slices.Concat(opsRead, opsUpdate), opsNone},
	"agents/:name/poll":                {opsUpdate, opsNone}, // gives no claims, takes them back
	"agents/:name/operations/:id/plan": {opsNone, opsUpdate},
	"agents/:name/operations/:id/accounts/:side":         {opsNone, opsUpdate},
	"agents/:name/operations/:id/accounts/inspect/:side": {opsNone, opsUpdate},
	"agents/:name/operations/:id/events":                 {opsUpdate, opsNone},
	"agents/:name/operations/:id/finish":                 {opsUpdate, opsNone},
}

// allowedWhileLocked decides about a request to a locked mount. Ending a lease is
// always allowed; renewing one never is, whatever its path.
func allowedWhileLocked(path *framework.Path, operation logical.Operation) bool {
	switch operation {
	case logical.RevokeOperation, logical.RollbackOperation, logical.HelpOperation:
		return true
	case logical.RenewOperation:
		return false
	default:
		return path != nil && slices.Contains(lockdownTable[readablePath(path.Pattern)].allowed, operation)
	}
}

// readablePath is a path's pattern as people write it: ^config/(?P<name>\w+)/?$
// is config/:name.
func readablePath(pattern string) string {
	var b strings.Builder
	rest := strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(pattern, "^"), "$"), "/?")
	for {
		before, group, found := strings.Cut(rest, "(?P<")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, expression, _ := strings.Cut(group, ">")
		b.WriteString(":" + name)
		rest = afterGroup(expression)
	}
}

// afterGroup returns what follows the parenthesis that closes the group text is
// in.
func afterGroup(text string) string {
	depth := 1
	for i, c := range text {
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		}
		if depth == 0 {
			return text[i+1:]
		}
	}
	return ""
}
