package wire

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// constants returns the values of the constants of a type in a file of ours.
func constants(t *testing.T, file, typeName string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	require.NoError(t, err)
	var values []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); ok && name.Name == typeName {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			values = append(values, value)
		}
		return true
	})
	slices.Sort(values)
	return values
}

// Every event type has a row, and every row is of a type; so it is with the steps.
func TestEventTypes_TableIsTotal(t *testing.T) {
	t.Parallel()
	var known []string
	for _, eventType := range EventTypes() {
		known = append(known, string(eventType))
	}
	require.Equal(t, constants(t, "event_type.go", "EventType"), known)
	for _, step := range Steps() {
		require.Contains(t, stepClasses, step)
	}
	require.Len(t, stepClasses, len(Steps()))
	require.Len(t, EventClasses(), len(constants(t, "event_type.go", "EventClass")))
	require.Len(t, Severities(), len(constants(t, "event_type.go", "Severity")))
}

// Whatever is told goes by its type and a class of the guide's; a step also by
// the guide's word for what it did.
func TestEventWords_Table(t *testing.T) {
	t.Parallel()
	for _, eventType := range EventTypes() {
		for _, step := range append(Steps(), "") {
			for _, kind := range Kinds() {
				words := EventWords(eventType, step, kind)
				require.Equal(t, string(eventType), words[0])
				require.Contains(t, EventClasses(), EventClass(words[len(words)-1]))
				for _, word := range words {
					require.True(t, ValidEventWord(word), word)
				}
			}
		}
	}
	require.Equal(t, []string{"step_finished", "schema_change", "data_modifications"}, EventWords(EventStepFinished, StepSwitch, KindClone))
	require.Equal(t, []string{"operation_finished", "backup_operations"}, EventWords(EventOperationFinished, StepFinish, KindBackup))
	require.Equal(t, []string{"bulk_data_export", "query_execution"}, EventWords("data_access", StepSnapshot, KindClone), "an older word")
	require.False(t, ValidEventWord("mfa_success"), "Vault's own matter")
}

// Words of earlier agents are still events, others are not; each field is named.
func TestValidEvent_Fields(t *testing.T) {
	t.Parallel()
	good := Event{EventType: "account_leased", Severity: SeverityInfo, Outcome: OutcomeSuccess, Phase: StepAccounts}
	require.Empty(t, ValidEvent(good))
	require.Equal(t, EventAccessGranted, good.EventType.Canonical())
	require.True(t, EventType("account_leased").Guide())
	for field, change := range map[string]func(e *Event){
		"event_type": func(e *Event) { e.EventType = "bob@example.com" },
		"severity":   func(e *Event) { e.Severity = "debug" },
		"outcome":    func(e *Event) { e.Outcome = "" },
		"phase":      func(e *Event) { e.Phase = "reading rows of bob" },
		"code":       func(e *Event) { e.Code = "23505" },
	} {
		bad := good
		change(&bad)
		require.Equal(t, field, ValidEvent(bad))
	}
}
