// The parts of Tabulator that the report's page uses.
import { FilterModule, FormatModule, InteractionModule, SortModule, Tabulator } from 'tabulator-tables';
Tabulator.registerModule([FilterModule, FormatModule, InteractionModule, SortModule]);
export { Tabulator };
